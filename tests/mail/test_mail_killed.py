"""Workers killed with -9 at random points while a hundred mailboxes fill: every message once, fetched once.

MAIL_KILLS=50 kills more often than the 4 times of `make crash`, and MAIL_SEED chooses other points.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from core import enqueue
from plugins.mail import add_account
from plugins.mail.store import LocalStore
from plugins.mail.store_check import GRACE, StoreCheck
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, fleet
from tests.support.imap_server import Folder, ImapServer, serving

KILLS = int(os.environ.get("MAIL_KILLS", "4"))
SEED = int(os.environ.get("MAIL_SEED", "20261128"))
pytestmark = [pytest.mark.crash, pytest.mark.timeout(300 + 60 * KILLS)]

ACCOUNTS, THREADS = 100, 12
#: The number of messages that arrive between two kills.
ARRIVING = 100
#: The mailboxes have different UIDs, so the log of the server tells which mailbox a command concerns.
APART = 10_000
PATIENCE = 240.0


def test_workers_killed_at_random_points_while_mailboxes_fill(tmp_path, postgres_url, redis_url):
    root = tmp_path / "store"
    root.mkdir()
    dice = random.Random(SEED)
    in_flight: Counter[int] = Counter()
    with filling(tmp_path, postgres_url, redis_url, root) as (server, service):
        accounts = add_all(service, server)
        for _ in range(KILLS):
            arrive(server, dice)
            ask(service, accounts)
            before = len(server.bodies)
            kill_in_the_middle(service, server, dice)
            lost = fetched_and_not_recorded(service, server, before)
            assert len(lost) <= THREADS
            in_flight.update(lost)
        ask(service, accounts)
        service.worker(threads=THREADS)
        eventually(lambda: len(messages(service)) == ARRIVING * KILLS, within=PATIENCE)
        check(service, accounts, LocalStore(root))
        eventually(lambda: {row.state for row in messages(service)} == {"processed"}, within=PATIENCE)

        found = messages(service)

        assert sorted(row.uid for row in found) == sorted(
            uid for folder in server.folders.values() for uid in folder.messages
        )
        assert Counter(row.content_id for row in found).most_common(1)[0][1] == 1
        assert {row.subject for row in found} == {f"number {row.uid}" for row in found}
        assert sorted(stored.key for stored in LocalStore(root).list()) == sorted(row.storage_key for row in found)
        assert sum(run.crashes for run in service.runs("poll-mailbox")) > 0, "none was killed in the middle of a poll"
        again = Counter(server.bodies) - Counter(row.uid for row in found)
        assert again <= in_flight, "a message was fetched again that was not in flight"
        figures = f"{len(found)} messages, {in_flight.total()} in flight, {again.total()} fetched again"
        print(f"seed {SEED}: {KILLS} kills, {figures}")  # noqa: T201


@contextmanager
def filling(folder: Path, postgres_url: str, redis_url: str, root: Path) -> Iterator[tuple[ImapServer, Fleet]]:
    """Yield a slow server, and a service that polls it."""
    environ = {
        "ROTA_MAIL_STORE": f"file://{root}",
        "ROTA_MAIL_POLLS_PER_HOST": "100",
        "MAIL_SECRET_ANN": "sesame",
        "ROTA_DISPATCH_SECONDS": "0.2",
        # After two processes have died during a run, the run gets a process of its own, and only one such run works at
        # a time. Here nearly every run has such deaths, and the kills must find many runs at work.
        "ROTA_MAX_CRASHES": "100",
    }
    with serving() as server, fleet(folder, postgres_url, redis_url, jobs="none", environ=environ) as service:
        server.delay = 0.002
        yield server, service


def add_all(service: Fleet, server: ImapServer) -> list[int]:
    """Add accounts whose mailboxes are folders of the server, and which are polled only when the test requests it."""
    with Session(service.engine) as session, session.begin():
        return [add(session, server, number) for number in range(ACCOUNTS)]


def add(session: Session, server: ImapServer, number: int) -> int:
    """Add one account."""
    server.folders[f"box{number}"] = Folder()
    of = {"host": "127.0.0.1", "port": server.port, "tls": "none", "username": "ann", "secret": "ann"}
    return add_account(session, f"box{number}", folder=f"box{number}", every=timedelta(days=1), **of)


def arrive(server: ImapServer, dice: random.Random) -> None:
    """Let messages arrive in mailboxes that the seed determines: none in some mailboxes, and several in others."""
    for _ in range(ARRIVING):
        number = dice.randrange(ACCOUNTS)
        folder = server.folders[f"box{number}"]
        folder.fill(1, start=number * APART + len(folder.messages) + 1)


def ask(service: Fleet, accounts: list[int]) -> None:
    """Request a poll of every account."""
    with Session(service.engine) as session, session.begin():
        for account_id in accounts:
            args = {"account_id": account_id, "host": "127.0.0.1"}
            enqueue(session, "poll-mailbox", key=str(account_id), args=args, unless="waiting")


def kill_in_the_middle(service: Fleet, server: ImapServer, dice: random.Random) -> None:
    """Kill a worker after it has fetched some of the messages that have arrived. The seed determines how many."""
    enough = len(server.bodies) + dice.randrange(1, ARRIVING)
    worker = service.worker(threads=THREADS)
    eventually(lambda: len(server.bodies) >= enough, within=PATIENCE, every=0.001)
    service.kill(worker)


def fetched_and_not_recorded(service: Fleet, server: ImapServer, before: int) -> set[int]:
    """Return the messages that polls of the last worker had fetched and not recorded when it was killed."""
    eventually(lambda: server.opened == 0)  # then the log has each command of the killed polls
    return set(server.bodies[before:]) - {row.uid for row in messages(service)}


def check(service: Fleet, accounts: list[int], store: LocalStore) -> None:
    """Compare objects and messages as if the time of grace had passed."""
    with Session(service.engine) as session:
        later = service.now() + 2 * GRACE
        for account_id in accounts:

            def request(message_id: int) -> Any:
                args = {"message_id": message_id}
                return enqueue(session, "process-email", key=str(message_id), args=args, unless="waiting")

            found = StoreCheck(session, account_id, store, later, lambda progress=None: session.commit(), request).run()
            session.commit()
            assert found["without_object"] == 0


def messages(service: Fleet) -> list[Any]:
    """Return all messages with their contents."""
    return service.rows("""
        SELECT message.*, content.message_id AS content_id, content.subject
        FROM mail_messages AS message LEFT JOIN mail_contents AS content ON content.message_id = message.id
    """)
