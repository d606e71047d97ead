"""Makes sample data: an IMAP server, accounts for its mailboxes, and messages that arrive one after another.

``python -m plugins.mail.simulation`` reads DATABASE_URL and runs until SIGTERM or SIGINT. The server is that of the
package pymap. It keeps messages in memory, and can be reached only from this machine. Its password is ``simulated``, so
the workers need ``MAIL_SECRET_SIMULATED=simulated``. The names of the accounts begin with ``simulated-``, and the
program changes no other accounts.
"""

import imaplib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from threading import Event

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from plugins.mail.accounts import add_account, change_account, find_account
from plugins.mail.errors import UnknownAccount

log = logging.getLogger("mail.simulation")

USER = PASSWORD = "simulated"
NAME = "simulated-"
FOLDERS = ("support", "sales", "billing", "jobs", "press")
POLLED_EVERY = timedelta(seconds=10)
STEP_SECONDS = 2.0
STEPS_TO_A_REPORT = 10
PYMAP = Path(sysconfig.get_path("scripts")) / "pymap"
SUBJECTS = ("the bill of March", "a question", "I cannot log in", "Grüße aus Köln", "日本からのメール", "thank you!")
PEOPLE = ("Ann", "Bob", "Zoë", "Tim")


def main() -> None:
    """Simulate until told to stop. Exits with status 2 if DATABASE_URL is not set, or pymap is not installed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s mail simulation: %(message)s")
    url = os.environ.get("DATABASE_URL") or usage("DATABASE_URL is not set; the simulation needs a database")
    if not PYMAP.exists():
        usage("the server of the simulation is not installed; `pip install pymap` installs it")
    stop = stop_on_signals()
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg2"), hide_parameters=True, pool_size=1)
    with server() as port, mailboxes(port) as client:
        while not stop.is_set() and not has_accounts(engine, port):
            stop.wait(STEP_SECONDS)
        log.info("started: %d mailboxes, a message every %g s; Ctrl-C ends it", len(FOLDERS), STEP_SECONDS)
        simulate(client, stop, random.Random())
    log.info("stopped")


def usage(problem: str) -> str:
    """End with status 2."""
    print(problem, file=sys.stderr)  # noqa: T201 — it is a command
    sys.exit(2)


def simulate(client: imaplib.IMAP4, stop: Event, dice: random.Random) -> None:
    """Let a message arrive in each step."""
    arrived = 0
    while not stop.is_set():
        client.append(dice.choice(FOLDERS), "", "", message(dice))
        arrived += 1
        if arrived % STEPS_TO_A_REPORT == 0:
            log.info("%d messages have arrived", arrived)
        stop.wait(STEP_SECONDS)


def message(dice: random.Random) -> bytes:
    """Return a message as a person, a program, or a broken program sends it."""
    made, sender = EmailMessage(), dice.choice(PEOPLE)
    made["From"] = f"{sender} <{sender.lower().replace('ë', 'e')}@example.com>"
    made["To"] = f"{USER}@example.com"
    made["Subject"] = dice.choice(SUBJECTS)
    made["Message-ID"] = f"<{dice.getrandbits(64):x}@example.com>"
    made.set_content(f"This is a simulated message.\n\n{sender}\n")
    kind = dice.randrange(5)
    if kind == 0:
        made["Auto-Submitted"] = "auto-replied"
    elif kind == 1:
        made.add_attachment(dice.randbytes(2000), maintype="application", subtype="pdf", filename="bill.pdf")
    raw = made.as_bytes().replace(b"\n", b"\r\n")
    return raw[: dice.randrange(len(raw))] if kind == 2 else raw


@contextmanager
def server() -> Iterator[int]:
    """Yield the port of an IMAP server with one user."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--host", "127.0.0.1", "--port", str(port), "--no-tls"]
    command = [str(PYMAP), *options, "dict", "--demo-user", USER, "--demo-password", PASSWORD]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            yield port
        finally:
            running.terminate()


@contextmanager
def mailboxes(port: int) -> Iterator[imaplib.IMAP4]:
    """Yield a connection that is logged in, after making the folders."""
    client = connected(port)
    try:
        client.login(USER, PASSWORD)
        for folder in FOLDERS:
            client.create(folder)
        yield client
    finally:
        client.shutdown()


def connected(port: int, tries: int = 200) -> imaplib.IMAP4:
    """Return a connection to the server, which may still be starting."""
    wait = Event()
    while True:
        try:
            return imaplib.IMAP4("127.0.0.1", port)
        except OSError:
            tries -= 1
            if not tries:
                raise
            wait.wait(0.1)


def has_accounts(engine: Engine, port: int) -> bool:
    """Add the accounts, or change their port. Return False if the database cannot be used yet."""
    try:
        with Session(engine) as session, session.begin():
            for folder in FOLDERS:
                add_or_move(session, folder, port)
    except DBAPIError as error:
        log.warning("waiting for the database: %s", str(error.orig).strip().partition("\n")[0])
        return False
    return True


def add_or_move(session: Session, folder: str, port: int) -> None:
    """Add an account for a folder of the server, or change its port."""
    try:
        change_account(session, find_account(session, NAME + folder).id, port=port)
    except UnknownAccount:
        add_account(
            session,
            NAME + folder,
            host="127.0.0.1",
            port=port,
            username=USER,
            tls="none",
            secret=USER,
            folder=folder,
            every=POLLED_EVERY,
        )


def stop_on_signals() -> Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    main()
