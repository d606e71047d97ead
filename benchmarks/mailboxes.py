"""A hundred mailboxes on a server that takes its time: from the commit that adds them until all have been polled.

Each answer of the server is late, so that a poll takes half a minute. Beside Rota's two processes of fifty threads, a
loop and five prefork processes of Celery poll mailboxes of the same server; those two get fewer, and the time for as
many as Rota has is computed from theirs.

python -m benchmarks.mailboxes [--mailboxes 100] [--seconds 30] [--threads 50] [--celery 10] [--loop 2]
"""

import argparse
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from benchmarks import goals, meter
from benchmarks.harness import PROCESSES, Bench, bench, wait_for
from benchmarks.peers import environment, mailbox
from plugins.mail import add_account
from tests.support.imap_server import ImapServer, serving

#: A poll of a mailbox with one message waits for the greeting, CAPABILITY, LOGIN, EXAMINE, SEARCH, two FETCH, LOGOUT.
ANSWERS = 8
CELERY_PROCESSES = 5
#: A worker is up within this, in seconds.
SETTLE_SECONDS = 8.0
POLLS = text("SELECT state, started_at, finished_at, queued_at FROM rota_runs WHERE job = 'poll-mailbox'")
STORED = text("SELECT count(*) FROM mail_messages WHERE state IN ('stored', 'processed')")


def mail_environ(folder: Path, secret: str) -> dict[str, str]:
    """The settings of the plugin, with folders for the store and for a secret of this name."""
    secrets, store = folder / "secrets", folder / "store"
    for each in (secrets, store):
        each.mkdir()
    (secrets / secret).write_text("sesame")
    return {
        "ROTA_MAIL_SECRETS_DIR": str(secrets),
        "ROTA_MAIL_STORE": f"file://{store}",
        "ROTA_MAIL_POLLS_PER_HOST": "1000",
    }


def ours(made: Bench, server: ImapServer, mailboxes: int, threads: int) -> tuple[float, float]:
    """The time that Rota takes for all mailboxes, and for the slowest of them."""
    environ = mail_environ(made.folder, "shared")
    size = ("-p", str(PROCESSES), "-t", str(threads), "-Q", "mail")
    with made.process(made.ticks / "none", "dramatiq", "core.main", *size, **environ):
        time.sleep(SETTLE_SECONDS)
        with Session(made.engine) as session, session.begin():
            for number in range(mailboxes):
                add(session, server, number)
        wait_for(lambda: len(polled(made)) == mailboxes, within=60 * 60)
    with made.engine.connect() as connection:
        assert connection.scalar(STORED) == mailboxes
    runs = polled(made)
    whole = max(run.finished_at for run in runs) - min(run.queued_at for run in runs)
    return whole.total_seconds(), max(run.finished_at - run.started_at for run in runs).total_seconds()


def add(session: Session, server: ImapServer, number: int) -> None:
    """Add an account that is polled at once, and not again for a day."""
    add_account(
        session,
        f"user {number}",
        host="127.0.0.1",
        port=server.port,
        tls="none",
        username=f"user-{number}",
        secret="shared",
        every=timedelta(days=1),
    )


def polled(made: Bench) -> list[Row[Any]]:
    """The runs that have ended."""
    with made.engine.connect() as connection:
        return [run for run in connection.execute(POLLS) if run.state == "succeeded"]


def celery(made: Bench, server: ImapServer, mailboxes: int) -> float:
    """The time that five prefork processes of Celery take."""
    made.reset()
    ticks, commands = made.ticks / "celery", environment.commands("celery")
    app = ("-A", "benchmarks.peers.mailbox_celery", "worker", "--loglevel=ERROR", "--without-gossip")
    with made.process(ticks, str(commands / "celery"), *app, f"--concurrency={CELERY_PROCESSES}"):
        time.sleep(SETTLE_SECONDS)
        producer = [str(commands / "python"), "-m", "benchmarks.peers.mailbox_celery", str(server.port), str(mailboxes)]
        begun = time.time()
        subprocess.run(producer, env=made.environment(ticks), check=True, stdout=subprocess.DEVNULL)
        wait_for(lambda: len(meter.ticks(ticks)) == mailboxes, within=60 * 60)
    return max(at for at, _ in meter.ticks(ticks)) - begun


def loop(server: ImapServer, mailboxes: int) -> float:
    """The time that a loop takes, one mailbox after the other."""
    begun = time.monotonic()
    for number in range(mailboxes):
        assert mailbox.poll("127.0.0.1", server.port, f"user-{number}", "sesame") == 1
    return time.monotonic() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mailboxes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30, help="How long a poll takes.")
    parser.add_argument("--threads", type=int, default=50)
    parser.add_argument("--celery", type=int, default=10, help="Mailboxes for Celery; 0 leaves it out.")
    parser.add_argument("--loop", type=int, default=2, help="Mailboxes for the loop; 0 leaves it out.")
    options = parser.parse_args()
    with bench() as made, serving() as server:
        server.inbox.fill(1)
        server.users = {f"user-{number}": "sesame" for number in range(options.mailboxes)}
        server.delay = options.seconds / ANSWERS
        whole, slowest = ours(made, server, options.mailboxes, options.threads)
        size = f"Rota, {PROCESSES} processes of {options.threads} threads"
        print(f"{size}: {options.mailboxes} in {whole:.1f} s, the slowest {slowest:.1f} s")
        goals.at_most("all mailboxes, times the slowest", whole / slowest, 1.2, "x")
        if options.celery:
            told(f"Celery, {CELERY_PROCESSES} processes", options, options.celery, celery(made, server, options.celery))
        if options.loop:
            told("a loop", options, options.loop, loop(server, options.loop))
    print(goals.table())


def told(name: str, options: argparse.Namespace, mailboxes: int, seconds: float) -> None:
    """Print what another took, and what that means for as many mailboxes as Rota had."""
    computed = seconds / mailboxes * options.mailboxes / 60
    print(f"{name}: {mailboxes} in {seconds:.1f} s, so {options.mailboxes} in {computed:.1f} min")


if __name__ == "__main__":
    main()
