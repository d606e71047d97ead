"""One dispatcher leads. Another dispatcher takes over if the leader's process dies or sends no heartbeat."""

from contextlib import ExitStack
from datetime import timedelta
from itertools import pairwise

import pytest
from sqlalchemy import text

from core import database as databases
from core import every, job
from core.dispatcher import leadership
from core.dispatcher.loop import GIVE_WAY_SECONDS, REDIS_LOST_SECONDS, Dispatcher
from core.ledger.processes import LEADER_LOCK
from core.observability.events import DispatcherFailed, DispatcherInterrupted, DispatcherStepFailed
from core.testing import registry_of
from tests.support.emitted import emitted
from tests.support.eventually import elapse, eventually
from tests.support.racing import race


@pytest.fixture
def stand(postgres_url, start_process, database):
    """Yield a candidate: a connection with the name of a process, which is registered unless the test forbids it."""
    with ExitStack() as stack:

        def stand(application, *, registered=True):
            engine = databases.connect(postgres_url, application=application)
            stack.callback(databases.dispose, engine)
            process = start_process(application=application) if registered else None
            return stack.enter_context(databases.dedicated(engine)), process

        yield stand


def test_one_of_several_candidates_leads(stand):
    candidates = [stand(f"rota:{number}")[0] for number in range(8)]

    won = race(*[lambda candidate=candidate: leadership.ask(candidate).is_won for candidate in candidates])

    assert won.count(True) == 1
    losers = [candidate for candidate, is_leader in zip(candidates, won, strict=True) if not is_leader]
    assert not any(leadership.ask(candidate).is_won for candidate in losers)


def test_when_the_leaders_connection_closes_another_takes_over(stand):
    (leader, _), (other, _) = stand("rota:1"), stand("rota:2")
    assert leadership.ask(leader).is_won
    assert not leadership.ask(other).is_won

    leader.close()

    assert eventually(lambda: leadership.ask(other).is_won, within=3)


def test_a_leader_that_fell_silent_is_deposed(stand, database, caplog):
    (leader, process), (other, _) = stand("rota:1"), stand("rota:2")
    assert leadership.ask(leader).is_won
    process.expire(database)

    assert eventually(lambda: leadership.ask(other).is_won, within=3)
    assert [event.leader for event in emitted(caplog, "dispatcher.deposed")] == ["rota:1"]


def test_a_leader_whose_process_was_reaped_is_deposed(stand):
    (leader, _), (other, _) = stand("rota:1", registered=False), stand("rota:2")
    assert leadership.ask(leader).is_won

    assert eventually(lambda: leadership.ask(other).is_won, within=3)


def test_a_leader_that_lives_is_not_deposed(stand):
    (leader, _), (other, _) = stand("rota:1"), stand("rota:2")
    assert leadership.ask(leader).is_won

    assert not any(leadership.ask(other).is_won for _ in range(5))
    assert leader.execute(text("SELECT 1")).scalar_one() == 1


def test_a_leader_that_registered_again_is_not_deposed(stand, start_process, database):
    (leader, first), (other, _) = stand("rota:1"), stand("rota:2")
    assert leadership.ask(leader).is_won
    first.expire(database)
    start_process(application="rota:1")

    assert not any(leadership.ask(other).is_won for _ in range(5))


class TestWaiting:
    """The leader is notified of runs that are due at once."""

    def test_it_hears_a_notification(self, stand, ledger):
        leader, _ = stand("rota:1")
        assert leadership.ask(leader).is_won

        ledger.do("NOTIFY rota_due")

        assert leadership.wait_for_runs(leader, 10)

    def test_it_hears_a_notification_that_came_before_it_waited_once(self, stand, ledger):
        leader, _ = stand("rota:1")
        assert leadership.ask(leader).is_won
        for _ in range(3):
            ledger.do("NOTIFY rota_due")
        leader.execute(text("SELECT 1"))

        assert leadership.wait_for_runs(leader, 0)
        assert not leadership.wait_for_runs(leader, 0)

    def test_it_waits_no_longer_than_it_was_told(self, stand):
        leader, _ = stand("rota:1")
        assert leadership.ask(leader).is_won

        assert not leadership.wait_for_runs(leader, 0.05)
        assert not leadership.wait_for_runs(leader, -1)


class TestDispatcher:
    """The dispatcher's thread, which every worker process has."""

    @pytest.fixture
    def start(self, postgres_url, start_process, carrier):
        with ExitStack() as stack:
            names = iter(range(100))

            def start(carrier=carrier, *, jobs=(work,), redis_lost_seconds=REDIS_LOST_SECONDS):
                carrier.recover = carrier.maintain = lambda *_: None
                carrier.oldest_runs = lambda _: (False, [])
                carrier.queues_with_messages = set
                application = f"rota:dispatcher:{next(names)}"
                engine = databases.connect(postgres_url, application=application)
                process = start_process(application=application)
                dispatcher = Dispatcher(
                    engine,
                    registry_of(*jobs),
                    carrier,
                    every_seconds=0.05,
                    resend_seconds=5,
                    max_crashes=3,
                    orphan_seconds=60,
                    redis_lost_seconds=redis_lost_seconds,
                )
                stack.callback(databases.dispose, engine)
                stack.callback(dispatcher.stop)
                dispatcher.start()
                return dispatcher, process, application

            yield start

    def leaders(self, ledger):
        statement = """
            SELECT application_name FROM pg_stat_activity WHERE pid IN (
                SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = CAST(:lock AS oid) AND granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
        """
        return [row.application_name for row in ledger.rows(statement, lock=LEADER_LOCK)]

    def test_it_sends_what_is_due(self, start, ledger, carrier):
        run_id = ledger.request()
        start()

        assert eventually(lambda: [run.run_id for run in carrier.runs], within=5) == [run_id]

    def test_it_hands_over_when_it_is_stopped(self, start, ledger, carrier):
        first, _, name = start()
        eventually(lambda: self.leaders(ledger) == [name], within=5)
        _, _, other = start()

        first.stop()

        assert eventually(lambda: self.leaders(ledger) == [other], within=5)
        run_id = ledger.request()
        assert eventually(lambda: [run.run_id for run in carrier.runs], within=5) == [run_id]

    def test_it_goes_on_after_its_connection_was_cut(self, start, ledger, carrier, caplog):
        dispatcher, _, name = start()
        eventually(lambda: self.leaders(ledger) == [name], within=5)

        ledger.do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name", name=name)
        run_id = ledger.request()

        assert eventually(lambda: [run.run_id for run in carrier.runs], within=5) == [run_id]
        assert dispatcher.is_alive()
        assert "Traceback" not in caplog.text
        (told,) = emitted(caplog, "dispatcher.interrupted")
        assert isinstance(told, DispatcherInterrupted)
        assert "connection" in told.error

    def test_it_goes_on_after_a_fault(self, start, ledger, carrier, caplog, monkeypatch):
        def broken(_):
            monkeypatch.undo()
            raise ValueError("broken on purpose")

        monkeypatch.setattr(leadership, "ask", broken)
        run_id = ledger.request()
        start()

        assert eventually(lambda: [run.run_id for run in carrier.runs], within=5) == [run_id]
        assert emitted(caplog, "dispatcher.failed") == [DispatcherFailed()]
        assert "ValueError: broken on purpose" in caplog.text

    def test_it_survives_an_error_in_a_pass(self, start, ledger, carrier, caplog):
        def broken(_):
            raise ValueError("broken on purpose")

        carrier.send, send = broken, carrier.send
        run_id = ledger.request()
        dispatcher, _, _ = start()
        eventually(lambda: emitted(caplog, "dispatcher.step_failed"), within=5)
        assert emitted(caplog, "dispatcher.step_failed") == [DispatcherStepFailed("send", "ValueError")]
        carrier.send = send
        ledger.do("UPDATE rota_runs SET sent_at = clock_timestamp() - interval '1 minute'")

        assert eventually(lambda: [run.run_id for run in carrier.runs], within=5) == [run_id]
        assert dispatcher.is_alive()

    def test_a_retry_is_sent_when_its_time_has_come(self, start, ledger, carrier):
        ledger.request(state="retrying", attempt=1)
        ledger.do("UPDATE rota_runs SET due_at = clock_timestamp() + interval '500 ms'")
        start()

        assert eventually(lambda: carrier.runs, within=5)
        assert ledger.value("SELECT sent_at - due_at FROM rota_runs") < timedelta(seconds=1)

    def test_one_that_alone_is_cut_off_from_redis_steps_down_and_what_is_due_is_sent_by_another(
        self, start, ledger, carrier, caplog
    ):
        cut_off, other = carrier, type(carrier)()
        _, _, name = start(cut_off, redis_lost_seconds=0.3)
        eventually(lambda: self.leaders(ledger) == [name], within=5)
        _, _, others_name = start(other, redis_lost_seconds=0.3)

        cut_off.carries = False
        run_id = ledger.request(state="retrying", attempt=1)

        assert eventually(lambda: [run.run_id for run in other.runs], within=5) == [run_id]
        assert self.leaders(ledger) == [others_name]
        assert caplog.text.count("dispatcher.stepped_down") == 1
        assert cut_off.runs == []

    def test_one_that_is_cut_off_from_redis_goes_on_leading_where_no_other_could(
        self, start, start_process, ledger, database, carrier, caplog
    ):
        start_process(kind="scheduler")
        start_process().expire(database)
        carrier.carries = False
        _, _, name = start(redis_lost_seconds=0.1)
        eventually(lambda: self.leaders(ledger) == [name], within=5)

        elapse(0.5)

        assert self.leaders(ledger) == [name]
        assert "dispatcher.stepped_down" not in caplog.text

    def test_where_all_are_cut_off_from_redis_leadership_wanders_and_no_slot_is_late(
        self, start, ledger, carrier, caplog
    ):
        caplog.set_level("INFO", "rota.dispatcher")
        carrier.carries = False
        for _ in range(2):
            start(jobs=(tick,), redis_lost_seconds=GIVE_WAY_SECONDS + 0.2)

        eventually(lambda: caplog.text.count("dispatcher.leading") > 2, within=20)

        slots = ledger.rows("SELECT slot, queued_at FROM rota_runs ORDER BY slot")
        steps = {after.slot - before.slot for before, after in pairwise(slots)}
        assert steps == {timedelta(seconds=1)}
        assert max(row.queued_at - row.slot for row in slots) < timedelta(seconds=2)


@job("work")
def work(run):
    pass


@job("tick", schedule=every(seconds=1))
def tick(run):
    pass


def add_workers(connection, count):
    connection.exec_driver_sql(
        "INSERT INTO rota_processes (id, kind, name, application, expires_at) "
        "SELECT -n, 'worker', 'host:' || n, 'rota:' || n, now() + interval '1 minute' "
        f"FROM generate_series(1, {count}) AS n"
    )


@pytest.mark.parametrize("count", [1, leadership.MOST_ASKING])
def test_a_few_who_wait_ask_at_every_interval(database, count):
    with database.connect() as connection:
        add_workers(connection, count)

        answer = leadership.ask(connection)

    assert {answer.pause_seconds(0.5) for _ in range(20)} == {0.5}


def test_many_who_wait_ask_no_more_often_between_them(database):
    with database.connect() as connection:
        add_workers(connection, 1000)
        answer = leadership.ask(connection)
    pauses = [answer.pause_seconds(1.0) for _ in range(1000)]

    assert 80 < sum(pauses) / len(pauses) < 120
    assert max(pauses) <= 200
