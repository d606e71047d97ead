"""Workers killed with -9 at random points while mailboxes fill: every message once, and no object without a message.

MAIL_KILLS=50 kills more often than the 4 times of `make crash`.
"""

import os
import random
from collections import Counter
from datetime import timedelta
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
pytestmark = [pytest.mark.crash, pytest.mark.timeout(300 + 60 * KILLS)]

ACCOUNTS, THREADS = 12, 12
#: How many messages each mailbox gets before each kill.
ARRIVING = 4
#: UIDs tell the mailboxes apart, so that the server's log does.
APART = 10_000
SEED = 20261128
#: Each process of a poll of its own takes seconds to start on a busy machine.
PATIENCE = 240.0


def test_workers_killed_at_random_points_while_mailboxes_fill(tmp_path, postgres_url, redis_url):
    root = tmp_path / "store"
    root.mkdir()
    environ = {
        "ROTA_MAIL_STORE": f"file://{root}",
        "ROTA_MAIL_POLLS_PER_HOST": "100",
        "MAIL_SECRET_ANN": "sesame",
        "ROTA_DISPATCH_SECONDS": "0.2",
    }
    dice = random.Random(SEED)
    with serving() as server, fleet(tmp_path, postgres_url, redis_url, jobs="none", environ=environ) as service:
        server.delay = 0.002
        accounts = [add(service, server, number) for number in range(ACCOUNTS)]
        for _ in range(KILLS):
            arrive(server)
            ask(service, server, accounts)
            kill_in_the_middle(service, server, dice)
        ask(service, server, accounts)
        service.worker(threads=THREADS)
        eventually(lambda: len(messages(service)) == ACCOUNTS * ARRIVING * KILLS, within=PATIENCE)
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
        again = sum(count - 1 for count in Counter(server.bodies).values())
        assert again <= KILLS * THREADS, "more was fetched again than was in flight"


def add(service: Fleet, server: ImapServer, number: int) -> int:
    """An account whose mailbox is a folder of the server, and that is polled when it is asked for."""
    server.folders[f"box{number}"] = Folder()
    with Session(service.engine) as session, session.begin():
        of = {"host": "127.0.0.1", "port": server.port, "tls": "none", "username": "ann", "secret": "ann"}
        day = timedelta(days=1)
        return add_account(session, f"box{number}", folder=f"box{number}", every=day, **of)


def arrive(server: ImapServer) -> None:
    """Have some messages arrive in every mailbox."""
    boxes = [folder for name, folder in server.folders.items() if name != "INBOX"]
    for number, folder in enumerate(boxes):
        folder.fill(ARRIVING, start=number * APART + len(folder.messages) + 1)


def ask(service: Fleet, server: ImapServer, accounts: list[int]) -> None:
    """Request a poll of every account."""
    with Session(service.engine) as session, session.begin():
        for account_id in accounts:
            args = {"account_id": account_id, "host": "127.0.0.1"}
            enqueue(session, "poll-mailbox", key=str(account_id), args=args, unless="waiting")


def kill_in_the_middle(service: Fleet, server: ImapServer, dice: random.Random) -> None:
    """Kill a worker after it has fetched a number of messages that the seed determines.

    It is a small number: a poll that has been killed twice gets a process of its own, one poll after another.
    """
    enough = len(server.bodies) + dice.randrange(1, 2 * ARRIVING)
    worker = service.worker(threads=THREADS)
    eventually(lambda: len(server.bodies) >= enough, within=PATIENCE, every=0.001)
    service.kill(worker)


def check(service: Fleet, accounts: list[int], store: LocalStore) -> None:
    """Compare objects and messages as they would be after the time of grace."""
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
    """All messages, each with what was read of it."""
    return service.rows("""
        SELECT message.*, content.message_id AS content_id, content.subject
        FROM mail_messages AS message LEFT JOIN mail_contents AS content ON content.message_id = message.id
    """)
