"""I7: the heartbeat registers a process, registers it again if its row was deleted, and releases its runs when it
stops.
"""

from contextlib import ExitStack
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from core import database as databases
from core.dispatcher.recovery import recover
from core.ledger import claims, leases
from core.ledger.processes import Identity
from core.observability.events import ProcessExpired, ProcessRegistered, ProcessReleased, ProcessResumed, RunForgotten
from core.plugins.loading import current
from core.schema import upgrade
from core.testing import create_database, drop_database
from core.worker import heartbeat as heartbeats
from core.worker.heartbeat import Heartbeat
from tests.support.emitted import emitted
from tests.support.eventually import eventually


@pytest.fixture
def beat(database, monkeypatch):
    """Yield a function that starts heartbeats with short intervals."""
    monkeypatch.setattr(heartbeats, "REGISTER_AGAIN_SECONDS", 0.05)
    with ExitStack() as stack:

        def beat(engine=database, *, every_seconds=0.05, lease=timedelta(seconds=15)):
            identity = Identity("worker", "test:1", "rota:heartbeat")
            heartbeat = Heartbeat(engine, identity, every_seconds=every_seconds, lease=lease)
            stack.callback(heartbeat.stop)
            heartbeat.start(["letters", "default"], "its-broker")
            return heartbeat

        yield beat


def processes(ledger):
    return ledger.rows("SELECT * FROM rota_processes ORDER BY id")


def test_it_registers_the_process_as_what_it_is(beat, ledger, caplog):
    caplog.set_level("INFO", "rota")
    heartbeat = beat()
    assert heartbeat.registered.wait(5)

    (row,) = processes(ledger)
    assert (row.id, row.kind, row.name, row.application, row.broker_id, row.queues) == (
        heartbeat.process_id, "worker", "test:1", "rota:heartbeat", "its-broker", ["letters", "default"]
    )  # fmt: skip
    assert emitted(caplog, "process.registered") == [ProcessRegistered("worker", row.id)]


def test_it_hands_back_what_was_claimed_here_and_nobody_has_in_hand(beat, ledger, monkeypatch, caplog):
    """The answer to the claim of these runs was lost. Runs that were claimed a moment ago are not released."""
    monkeypatch.setattr(heartbeats, "FORGOTTEN_SECONDS", 0.1)
    heartbeat = beat()
    assert heartbeat.registered.wait(5)
    runs = [ledger.request(exclusive=False) for _ in range(3)]
    with databases.autocommit(ledger.engine) as connection:
        found = [claims.claim(connection, run_id, job="work", process_id=heartbeat.process_id, worker="test:1")[1]
                 for run_id in runs]  # fmt: skip
    heartbeat.in_hand.add(found[0])
    ledger.do("UPDATE rota_runs SET started_at = started_at - interval '1 minute' WHERE id = ANY(:ids)", ids=runs[:2])

    eventually(lambda: ledger.run(runs[1]).state == "retrying", within=5)

    assert [ledger.run(run_id).state for run_id in runs] == ["running", "retrying", "running"]
    assert (ledger.run(runs[1]).failures, ledger.run(runs[1]).crashes) == (0, 0)
    assert emitted(caplog, "run.forgotten") == [RunForgotten(1, str(runs[1]))]


@pytest.mark.parametrize(("attempts", "state", "reason"), [(19, "retrying", None), (20, "dead", "lost")])
def test_a_run_that_is_lost_sight_of_again_and_again_ends(beat, ledger, monkeypatch, caplog, attempts, state, reason):
    """Uncounted attempts are limited too. Attempts before a retry by hand, failures and crashes do not count."""
    monkeypatch.setattr(heartbeats, "FORGOTTEN_SECONDS", 0.1)
    heartbeat = beat()
    assert heartbeat.registered.wait(5)
    run_id = ledger.request(attempt=7 + 3 + 2 + attempts, retried_after=7, failures=3, crashes=2, state="retrying")
    with databases.autocommit(ledger.engine) as connection:
        claims.claim(connection, run_id, job="work", process_id=heartbeat.process_id, worker="test:1")
    ledger.do("UPDATE rota_runs SET started_at = started_at - interval '1 minute'")

    eventually(lambda: ledger.run(run_id).state != "running", within=5)

    row = ledger.run(run_id)
    assert (row.state, row.failures, row.crashes) == (state, 3, 2)
    assert reason in (None, row.reason)
    eventually(lambda: ("run.lost_too_often" in caplog.text) == (state == "dead"), within=5)


def test_it_renews_the_lease_from_now_on(beat, ledger):
    heartbeat = beat()
    assert heartbeat.registered.wait(5)
    ledger.do("UPDATE rota_processes SET expires_at = clock_timestamp() + interval '1 second'")

    left = "SELECT expires_at - clock_timestamp() FROM rota_processes"
    assert eventually(lambda: ledger.value(left) > timedelta(seconds=10), within=5)


@pytest.mark.parametrize(
    "loss",
    [
        "UPDATE rota_processes SET expires_at = clock_timestamp() - interval '1 second'",
        "DELETE FROM rota_processes",
    ],
)
def test_a_process_whose_lease_was_lost_registers_again(beat, ledger, loss, caplog):
    heartbeat = beat()
    assert heartbeat.registered.wait(5)
    first = heartbeat.process_id
    ledger.do(loss)

    second = eventually(lambda: heartbeat.process_id not in (None, first) and heartbeat.process_id, within=5)

    assert second > first
    assert second in {row.id for row in processes(ledger)}
    assert emitted(caplog, "process.expired") == [ProcessExpired(first)]


CUT = "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND objid = :id"


def claimed(ledger, database, process_id):
    """Claim a run for that process. Return the lease."""
    run_id = ledger.request()
    with databases.autocommit(database) as connection:
        _, lease = claims.claim(connection, run_id, job="work", process_id=process_id, worker="test:1")
    assert lease is not None
    return lease


def test_a_process_whose_connection_was_cut_goes_on_as_itself_with_its_leases(beat, ledger, database, caplog):
    """The process does this at once, before its next heartbeat is due."""
    caplog.set_level("INFO", "rota")
    heartbeat = beat(every_seconds=5)
    assert heartbeat.registered.wait(5)
    lease, first = claimed(ledger, database, heartbeat.process_id), heartbeat.process_id

    assert ledger.value(CUT, id=first)
    eventually(
        lambda: ledger.rows("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = :id", id=first), within=3
    )

    assert heartbeat.process_id == first
    with database.begin() as connection:
        leases.hold(connection, lease)
    eventually(lambda: emitted(caplog, "process.resumed") == [ProcessResumed("worker", first)], within=5)


def test_the_runs_of_a_process_whose_connection_is_cut_again_and_again_are_no_crashes(beat, ledger, database, serve):
    """Meanwhile a dispatcher looks for dead processes without a pause."""
    heartbeat = beat(every_seconds=5)
    assert heartbeat.registered.wait(5)
    lease = claimed(ledger, database, heartbeat.process_id)
    carrier = serve().carrier
    with databases.dedicated(database) as connection:
        for _ in range(5):
            assert ledger.value(CUT, id=heartbeat.process_id)
            recover(connection, carrier, 3)

    row = ledger.run(lease.run_id)
    assert (row.state, row.crashes, row.process_id) == ("running", 0, heartbeat.process_id)


def test_a_process_that_is_cut_off_for_longer_than_its_lease_may_claim_nothing(beat, ledger, database, monkeypatch):
    heartbeat = beat(every_seconds=0.1, lease=timedelta(seconds=1))
    assert heartbeat.registered.wait(5)
    first = heartbeat.process_id

    def away(*_):
        raise OperationalError("away on purpose", None, Exception())

    monkeypatch.setattr(heartbeats.processes, "renew", away)
    monkeypatch.setattr(heartbeats.processes, "resume", away)

    eventually(lambda: heartbeat.process_id is None, within=3)
    monkeypatch.undo()
    assert eventually(lambda: heartbeat.process_id, within=5) > first


def test_stopping_hands_back_what_still_runs_without_counting_it_as_a_crash(beat, ledger, database, caplog):
    caplog.set_level("INFO", "rota")
    heartbeat = beat()
    assert heartbeat.registered.wait(5)
    run_id = ledger.request()
    with databases.autocommit(database) as connection:
        _, lease = claims.claim(connection, run_id, job="work", process_id=heartbeat.process_id, worker="test:1")
    assert lease is not None

    heartbeat.stop()

    row = ledger.run(run_id)
    assert (row.state, row.reason, row.crashes, row.failures, row.sent_at) == (
        "retrying", "its worker was stopped", 0, 0, None
    )  # fmt: skip
    assert processes(ledger) == []
    assert not heartbeat.is_alive()
    assert emitted(caplog, "process.released") == [ProcessReleased(1, "its worker was stopped")]


def test_stopping_one_that_never_started_is_allowed(database):
    Heartbeat(database, Identity("worker", "x", "x"), every_seconds=1, lease=timedelta(seconds=3)).stop()


def test_an_unmigrated_database_is_one_clear_complaint_and_it_goes_on_once_it_is_migrated(
    beat, embedded, caplog, monkeypatch
):
    tries, register = [], heartbeats.processes.register

    def try_to_register(*args):
        tries.append(args)
        return register(*args)

    monkeypatch.setattr(heartbeats.processes, "register", try_to_register)
    url = create_database(embedded[0].url, "test_unmigrated")
    engine = databases.connect(url)
    try:
        heartbeat = beat(engine)
        eventually(lambda: "not migrated" in caplog.text, within=5)
        eventually(lambda: len(tries) >= 5, within=5)
        complaints = [record for record in caplog.records if "process.not_registered" in record.message]
        assert len(complaints) == 1
        assert "the database is not migrated, run `rota db upgrade`" in complaints[0].message

        list(upgrade.upgrade(engine, current()))

        assert heartbeat.registered.wait(5)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM rota_processes")).scalar_one() == 1
        heartbeat.stop()
    finally:
        databases.dispose(engine)
        drop_database(embedded[0].url, "test_unmigrated")
