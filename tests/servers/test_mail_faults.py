"""One of a hundred accounts reads a real Dovecot through a proxy that delays, cuts and damages the answers."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import enqueue
from core.embedded import temporary_folder
from plugins.mail import add_account
from tests.support import cutting_proxy
from tests.support.cutting_proxy import CuttingProxy, Fault, cutting
from tests.support.dovecot import Dovecot, dovecot
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, fleet

ACCOUNTS, THREADS = 100, 20
#: The shortest interval between polls.
EVERY = timedelta(seconds=10)
#: The duration of a poll whose server does not answer.
READ_SECONDS = 5
#: Every poll of another account starts within this time after its slot. With a single thread, it would be READ_SECONDS
#: late.
LATEST = timedelta(seconds=3)
#: Each fault, with a part of the error or of the reason that the account then has.
FAULTS: list[tuple[Fault, str]] = [
    (cutting_proxy.slow, ""),
    (cutting_proxy.silent, "has sent nothing for too long"),
    (cutting_proxy.reset_in_literal, "was lost"),
    (cutting_proxy.half_sent, "was lost"),
    (cutting_proxy.bye, "has ended the connection"),
    (cutting_proxy.too_small, "has sent an answer that cannot be read"),
    (cutting_proxy.too_large, "has sent nothing for too long"),
    (cutting_proxy.honest, ""),
]
#: Ends a failed poll, which would otherwise be retried after a minute.
DROP = text("""
    UPDATE rota_runs SET state = 'dead', finished_at = clock_timestamp()
    WHERE job = 'poll-mailbox' AND key = :key AND state = 'retrying'
""")


@pytest.fixture
def server() -> Iterator[Dovecot]:
    with temporary_folder("rota-dovecot-") as folder, dovecot(folder) as running:
        yield running


@pytest.mark.timeout(240)
def test_an_account_whose_server_is_slow_and_cut_off_makes_no_other_late(tmp_path, postgres_url, redis_url, server):
    (tmp_path / "store").mkdir()
    environ = {
        "ROTA_MAIL_STORE": f"file://{tmp_path / 'store'}",
        "ROTA_MAIL_POLLS_PER_HOST": "100",
        "ROTA_MAIL_READ_SECONDS": str(READ_SECONDS),
        "MAIL_SECRET_ANY": "sesame",
    }
    for number in range(ACCOUNTS):
        deliver(server, number, 0)
    with (
        cutting(server.port) as proxy,
        fleet(tmp_path, postgres_url, redis_url, jobs="none", environ=environ) as service,
    ):
        broken = add(service, proxy.port, 0, timedelta(days=1))
        for number in range(1, ACCOUNTS):
            add(service, server.port, number, EVERY)
        service.worker(threads=THREADS)
        eventually(lambda: len(subjects(service)) == ACCOUNTS)
        begun = service.now()

        told = [suffer(service, server, proxy, broken, number) for number in range(len(FAULTS))]

        slots = others(service, broken, begun)
        late = [run.started_at - run.slot for run in slots if run.started_at]
        print(f"latest of {len(late)} polls: {max(late)}, half of them: {sorted(late)[len(late) // 2]}")  # noqa: T201
        assert [(fault.__name__, words in error) for (fault, words), error in zip(FAULTS, told, strict=True)] == [
            (fault.__name__, True) for fault, _ in FAULTS
        ], told
        eventually(lambda: len(subjects(service)) == ACCOUNTS + len(FAULTS))
        assert sorted(subjects(service)) == sorted(
            ["0"] * ACCOUNTS + [str(number + 1) for number in range(len(FAULTS))]
        )
        assert len(late) >= (ACCOUNTS - 1) * ((service.now() - begun) // EVERY - 1)
        assert max(late) < LATEST
        assert {run.state for run in slots} <= {"succeeded", "running", "queued"}


def deliver(server: Dovecot, number: int, message: int) -> None:
    """Deliver a message to a user, large enough to be cut."""
    head = f"From: ann@example.com\r\nMessage-ID: <{number}.{message}@example.com>\r\nSubject: {message}\r\n\r\n"
    server.deliver(f"user{number}", f"{1_800_000_000 + message}.M1P{number}.host", head.encode() + b"Hello\r\n" * 200)


def add(service: Fleet, port: int, number: int, every: timedelta) -> int:
    """Add the account of a user."""
    with Session(service.engine) as session, session.begin():
        of: dict[str, Any] = {"host": "127.0.0.1", "port": port, "tls": "none", "secret": "any", "every": every}
        return add_account(session, f"user{number}", username=f"user{number}", **of)


def suffer(service: Fleet, server: Dovecot, proxy: CuttingProxy, account_id: int, number: int) -> str:
    """Deliver a message, and poll once under a fault. Return the error, or the reason of a postponement."""
    proxy.fault, _ = FAULTS[number]
    deliver(server, 0, number + 1)
    with Session(service.engine) as session, session.begin():
        session.execute(text("UPDATE mail_accounts SET postponed_until = NULL"))
        session.execute(DROP, {"key": str(account_id)})
        args = {"account_id": account_id, "host": "127.0.0.1"}
        run_id = enqueue(session, "poll-mailbox", key=str(account_id), args=args)
    ended = "SELECT error, result FROM rota_runs WHERE id = :id AND state IN ('succeeded', 'retrying', 'dead')"
    ((error, result),) = eventually(lambda: service.rows(ended, id=run_id))
    return str(error or (result or {}).get("reason", ""))


def others(service: Fleet, broken: int, begun: datetime) -> list[Any]:
    """Return the slots of the other accounts since that time."""
    return [run for run in service.runs("poll-mailbox") if run.slot and run.slot > begun and run.key != str(broken)]


def subjects(service: Fleet) -> list[str]:
    """Return the subjects of all processed messages."""
    return [row.subject for row in service.rows("SELECT subject FROM mail_contents")]
