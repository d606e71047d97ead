"""I4, I7: when a process dies, its leases end, its runs are recovered, and its messages are requeued."""

import time
from datetime import timedelta

import pytest
import redis
from sqlalchemy import text

from core import database as databases
from core import job
from core.dispatcher.recovery import Outage, Recovery, recover, requeue
from core.ledger import processes
from core.ledger.claims import Verdict
from core.ledger.processes import Identity
from core.observability.events import ProcessLost, RecoveryFailed, RecoveryInterrupted, RunRecovered
from core.transport.redis import RotaBroker, connect
from tests.support.emitted import emitted
from tests.support.eventually import eventually


@pytest.fixture
def reaper(database):
    """The dispatcher's connection."""
    with databases.dedicated(database) as connection:
        yield connection


@pytest.fixture
def reaped(reaper):
    """Recover until a process is found dead. PostgreSQL releases a lock a moment after its connection has closed."""
    return lambda: eventually(lambda: processes.end_dead(reaper), within=3, every=0.01)


def registered(ledger):
    return [row.id for row in ledger.rows("SELECT id FROM rota_processes ORDER BY id")]


class TestReap:
    """Which processes count as dead."""

    def test_a_process_whose_connection_closed_is_reaped(self, start_process, reaped, ledger):
        dead, living = start_process(broker_id="its-broker"), start_process()
        dead.die()

        (found,) = reaped()

        assert (found.id, found.kind, found.broker_id) == (dead.id, "worker", "its-broker")
        assert registered(ledger) == [living.id]

    def test_a_process_that_fell_silent_is_reaped(self, start_process, reaper, ledger, database):
        silent, living = start_process(), start_process()
        silent.expire(database)

        assert [found.id for found in processes.end_dead(reaper)] == [silent.id]
        assert registered(ledger) == [living.id]

    def test_a_living_process_is_left_alone(self, start_process, reaper):
        for _ in range(3):
            start_process()

        assert processes.end_dead(reaper) == []

    def test_with_patience_neither_a_lost_lock_nor_a_lease_that_has_just_run_out_is_a_death(
        self, start_process, reaper, ledger, database
    ):
        cut, silent, long_silent = start_process(), start_process(), start_process(lease=-timedelta(seconds=16))
        cut.die()
        silent.expire(database)
        eventually(lambda: processes.misses_any(reaper), within=3, every=0.01)

        assert [found.id for found in processes.end_dead(reaper, timedelta(seconds=15))] == [long_silent.id]
        assert {found.id for found in processes.end_dead(reaper)} == {cut.id, silent.id}

    def test_a_process_that_resigned_leaves_nothing_to_reap(self, start_process, reaper, ledger):
        process = start_process()
        processes.resign(process.connection, process.id)
        process.die()

        assert processes.end_dead(reaper) == []
        assert registered(ledger) == []

    def test_a_lock_of_another_database_does_not_keep_a_process_alive(self, ledger, reaper, template):
        engine = databases.connect(template)
        with databases.dedicated(engine) as elsewhere:
            elsewhere.execute(text("SELECT pg_advisory_lock(:space, 77)"), {"space": processes.LOCK_SPACE})
            ledger.do(
                "INSERT INTO rota_processes (id, kind, name, application, expires_at) "
                "VALUES (77, 'worker', 'x', 'x', 'infinity')"
            )

            assert [found.id for found in processes.end_dead(reaper)] == [77]
        databases.dispose(engine)

    def test_whatever_connections_a_silent_process_has_are_closed(self, start_process, reaper, database, postgres_url):
        silent = start_process(application="rota:the-silent")
        engine = databases.connect(postgres_url, application="rota:the-silent")
        held = engine.connect()
        held.execute(text("SELECT 1"))
        silent.expire(database)
        processes.end_dead(reaper)

        assert eventually(lambda: not self.backends(reaper, "rota:the-silent"), within=5)
        held.invalidate()
        held.close()

    def test_a_process_that_registered_again_keeps_its_connections(self, start_process, reaper, database, postgres_url):
        first = start_process(application="rota:the-same")
        engine = databases.connect(postgres_url, application="rota:the-same")
        with databases.dedicated(engine) as connection:
            identity = Identity("worker", "test:1", "rota:the-same")
            second = processes.register(connection, identity, timedelta(seconds=15))
            first.expire(database)

            assert [found.id for found in processes.end_dead(reaper)] == [first.id]

            assert processes.renew(connection, second, timedelta(seconds=15))
            assert processes.end_dead(reaper) == []

    def backends(self, reaper, application):
        statement = text("SELECT pid FROM pg_stat_activity WHERE application_name = :application")
        return reaper.execute(statement, {"application": application}).all()

    def test_row_locks_of_a_silent_process_do_not_outlive_its_lease(
        self, start_process, reaper, database, ledger, postgres_url
    ):
        silent = start_process(application="rota:the-silent")
        run_id = silent.lease(database, ledger.request()).run_id
        engine = databases.connect(postgres_url, application="rota:the-silent")
        held = engine.connect()
        held.execute(text("SELECT 1 FROM rota_runs FOR UPDATE"))
        silent.expire(database)
        processes.end_dead(reaper)

        (recovered,) = eventually(lambda: processes.recover(reaper, 3), within=5)
        assert recovered.run_id == run_id
        held.invalidate()
        held.close()


class TestOutage:
    """How long processes have to come back after an outage of PostgreSQL."""

    def test_without_one_nobody_waits(self):
        assert Outage().patience(1000) is None

    def test_after_one_leases_may_have_run_out_while_it_lasted_and_for_a_while_more(self):
        outage = Outage()
        for now in (100, 101, 160):
            outage.goes_on(now)
        outage.end()

        assert outage.patience(161) == timedelta(seconds=60 + processes.RETURN_SECONDS)
        assert outage.patience(160 + processes.RETURN_SECONDS) is None

    def test_a_relapse_makes_it_no_shorter(self):
        outage = Outage()
        for now in (100, 160):
            outage.goes_on(now)
        outage.end()
        outage.goes_on(162)

        assert outage.patience(163) == timedelta(seconds=60 + processes.RETURN_SECONDS)

    def test_a_statement_that_takes_long_has_met_a_stall(self, ledger):
        outage = Outage(stall_seconds=0.3)
        with outage.timed():
            ledger.value("SELECT pg_sleep(0.01)")
        assert outage.patience(time.monotonic()) is None

        with outage.timed():
            ledger.value("SELECT pg_sleep(0.4)")

        seconds = outage.patience(time.monotonic()).total_seconds()
        assert 0.4 <= seconds - processes.RETURN_SECONDS < 10

    def test_connections_that_are_cut_for_ever_put_no_death_off_for_ever(self):
        outage = Outage()
        for now in range(100, 1000, 10):
            outage.goes_on(now)
            outage.end()

        assert outage.patience(1000) == timedelta(seconds=processes.RETURN_SECONDS)


class TestHandOn:
    """The runs of a dead process."""

    def test_its_runs_are_due_again_at_once_and_the_crash_is_counted(self, start_process, reaper, database, ledger):
        process = start_process()
        run_id = process.lease(database, ledger.request()).run_id
        process.expire(database)
        processes.end_dead(reaper)

        (recovered,) = processes.recover(reaper, 3)

        row = ledger.run(run_id)
        assert (recovered.run_id, recovered.state) == (run_id, "retrying")
        assert (row.state, row.reason, row.crashes, row.failures, row.sent_at, row.process_id) == (
            "retrying", "worker died", 1, 0, None, None
        )  # fmt: skip
        assert "test:1 died or sent no heartbeat during attempt 1" in row.error
        assert ledger.value("SELECT due_at <= clock_timestamp() FROM rota_runs")

    def test_a_run_that_keeps_killing_its_worker_is_dead_and_no_other(self, start_process, reaper, database, ledger):
        killer, innocent = ledger.request(key="killer"), ledger.request(key="innocent")
        states = []
        for _ in range(3):
            process = start_process()
            process.lease(database, killer)
            process.expire(database)
            processes.end_dead(reaper)
            states += [recovered.state for recovered in processes.recover(reaper, 3)]

        row = ledger.run(killer)
        assert states == ["retrying", "retrying", "dead"]
        assert (row.state, row.reason, row.attempt, row.crashes) == ("dead", "crashes", 3, 3)
        assert row.finished_at is not None
        assert ledger.run(innocent).state == "queued"

    def test_runs_of_living_processes_are_not_handed_on(self, process, reaper, database, ledger):
        process.lease(database, ledger.request())

        assert processes.recover(reaper, 3) == []

    def test_a_run_handed_on_frees_its_key_and_stays_first(self, start_process, reaper, database, ledger):
        dead, living = start_process(), start_process()
        first, second = ledger.request(), ledger.request()
        dead.lease(database, first)
        dead.expire(database)
        processes.end_dead(reaper)
        processes.recover(reaper, 3)

        assert living.claim(database, second)[0] == Verdict.WAITING
        assert living.lease(database, first).attempt == 2


@job("work")
def work(run):
    pass


class TestMessages:
    """The messages that a dead process had fetched."""

    @pytest.fixture
    def dead_broker(self, serve, redis_url):
        """Return a broker that has fetched three messages, and whose process is dead."""
        service = serve(work)
        for _ in range(3):
            service.broker.enqueue(service.broker.get_actor("work").message())
        client = connect(redis_url)
        broker = RotaBroker(client)
        broker.declare_queue("default")
        assert len(broker.do_fetch("default", 10)) == 3
        client.close()
        return service, broker.broker_id

    def test_they_are_put_back_on_their_queue(self, dead_broker):
        service, broker_id = dead_broker
        assert service.waiting() == 0

        requeue(service.carrier, broker_id, ["default"])

        assert service.waiting() == 3
        assert not service.redis.exists(f"dramatiq:__acks__.{broker_id}.default")

    def test_they_are_put_back_when_the_process_is_reaped(
        self, dead_broker, start_process, reaper, ledger, database, caplog
    ):
        service, broker_id = dead_broker
        process = start_process(broker_id=broker_id)
        run_id = process.lease(database, ledger.request()).run_id
        process.expire(database)

        recover(reaper, service.carrier, 3)

        assert service.waiting() == 3
        assert ledger.run(run_id).state == "retrying"
        assert emitted(caplog, "process.lost") == [ProcessLost("worker", process.id, "test:1")]
        assert emitted(caplog, "run.recovered") == [RunRecovered("work", run_id, 1, "retrying")]

    def test_those_of_a_living_process_are_left_alone(self, dead_broker):
        service, _ = dead_broker

        requeue(service.carrier, "another-broker", ["default"])
        service.carrier.maintain(["default"])

        assert service.waiting() == 0

    def test_without_redis_the_runs_are_handed_on_all_the_same(self, start_process, reaper, ledger, database, caplog):
        states = []

        class Away:
            carries = True

            def recover(self, broker_id, queues):
                states.append(ledger.run(run_id).state)
                raise redis.ConnectionError("away on purpose, after a long while")

        process = start_process(broker_id="its-broker")
        run_id = process.lease(database, ledger.request()).run_id
        process.expire(database)

        recover(reaper, Away(), 3)

        assert ledger.run(run_id).state == "retrying"
        assert emitted(caplog, "dispatcher.not_recovered")
        assert states == ["retrying"], "the runs come first"

    def test_a_redis_that_is_known_to_be_away_is_not_asked(self, start_process, reaper, ledger, database, caplog):
        class KnownToBeAway:
            carries = False

            def recover(self, broker_id):
                raise redis.ConnectionError("away on purpose")

        process = start_process(broker_id="its-broker")
        run_id = process.lease(database, ledger.request()).run_id
        process.expire(database)

        recover(reaper, KnownToBeAway(), 3)

        assert ledger.run(run_id).state == "retrying"
        assert not emitted(caplog, "dispatcher.not_recovered")


class TestThread:
    """The thread that recovers while its process leads."""

    @pytest.fixture
    def recovery(self, postgres_url, serve):
        engine = databases.connect(postgres_url, application="rota:recovery")
        recovery = Recovery(engine, serve(work).carrier, Outage(), every_seconds=0.05, max_crashes=3)
        yield recovery
        recovery.stop()
        databases.dispose(engine)

    def test_it_goes_on_after_its_connection_was_cut(self, recovery, start_process, ledger, database, caplog):
        recovery.start()
        backend = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rota:recovery'"
        eventually(lambda: ledger.rows(backend), within=5)
        eventually(lambda: emitted(caplog, "recovery.interrupted"), within=5)
        process = start_process()
        run_id = process.lease(database, ledger.request()).run_id
        process.die()

        eventually(lambda: ledger.run(run_id).state == "retrying", within=10 + processes.RETURN_SECONDS)
        first = emitted(caplog, "recovery.interrupted")[0]
        assert isinstance(first, RecoveryInterrupted)
        assert "connection" in first.error

    def test_it_goes_on_after_a_fault(self, recovery, start_process, ledger, database, caplog, monkeypatch):
        def broken(_):
            monkeypatch.undo()
            raise ValueError("broken on purpose")

        monkeypatch.setattr(processes, "is_any_gone", broken)
        process = start_process()
        run_id = process.lease(database, ledger.request()).run_id
        process.die()

        recovery.start()

        eventually(lambda: ledger.run(run_id).state == "retrying", within=10)
        assert emitted(caplog, "recovery.failed") == [RecoveryFailed()]
        assert "ValueError: broken on purpose" in caplog.text
