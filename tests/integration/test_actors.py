"""Actors: sending inserts a run, a message without a run becomes a run, and the fast lane delivers as plain Dramatiq
does.
"""

import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import redis
from dramatiq.message import Message
from sqlalchemy import event
from sqlalchemy.orm import Session

from core import every, job, send
from core.errors import BadArguments
from tests.support.effects import leave
from tests.support.emitted import emitted
from tests.support.eventually import eventually


@job("work", queue="letters")
def work(run, customer: int, urgent: bool = False):
    leave(run.session, f"customer {customer} {urgent}")


def message(actor, **changes):
    """Return a message as a plain Dramatiq producer sends it."""
    fields = {"queue_name": "letters", "actor_name": actor, "args": (), "kwargs": {}, "options": {}, **changes}
    return Message(**fields)


def quiet(service, queue):
    """Return whether no message of a queue is left."""
    return service.waiting(queue) == service.fetched(queue) == service.waiting(f"{queue}.DQ") == 0


class TestSend:
    """All methods of JobActor that send insert a run."""

    @pytest.fixture
    def actor(self, serve):
        return serve(work).broker.get_actor("work")

    @pytest.mark.parametrize(
        "send",
        [
            lambda actor: actor.send(5, True),
            lambda actor: actor.send(5, urgent=True),
            lambda actor: actor.send(customer=5, urgent=True),
            lambda actor: actor.send_with_options(args=(5,), kwargs={"urgent": True}),
        ],
    )
    def test_sending_inserts_a_run_with_its_arguments_by_name(self, actor, ledger, send):
        sent = send(actor)

        (row,) = ledger.runs("work")
        assert (row.state, row.queue, row.args) == ("queued", "letters", {"customer": 5, "urgent": True})
        assert sent.options["run_id"] == row.id

    @pytest.mark.parametrize("delay", [60_000, timedelta(minutes=1)])
    def test_sending_with_a_delay_makes_a_run_due_then(self, actor, ledger, delay):
        actor.send_with_options(args=(5,), delay=delay)

        (row,) = ledger.runs("work")
        assert timedelta(seconds=59) < row.due_at - row.queued_at < timedelta(seconds=61)
        assert row.sent_at is None

    @pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("5",), {}), ((5, True, 6), {}), ((5,), {"costumer": 6})])
    def test_wrong_arguments_are_refused_where_they_are_sent(self, actor, ledger, args, kwargs):
        with pytest.raises(BadArguments):
            actor.send(*args, **kwargs)

        assert ledger.runs("work") == []


class TestMessagesWithoutARun:
    """A message that names no run, from a producer that knows only Dramatiq."""

    def test_it_becomes_a_run_with_its_arguments_and_is_worked_on(self, serve, ledger):
        service = serve(work)
        service.broker.enqueue(message("work", args=(5,), kwargs={"urgent": True}))
        service.work()

        eventually(lambda: ledger.states("work") == ["succeeded"], within=5)
        assert ledger.effects() == ["customer 5 True"]

    def test_with_wrong_arguments_it_is_a_dead_letter_and_the_worker_goes_on(self, serve, ledger):
        service = serve(work)
        service.broker.enqueue(message("work", kwargs={"costumer": 5}))
        service.broker.enqueue(message("work", args=(7,)))
        service.work(threads=1)

        eventually(lambda: ledger.states("work") == ["succeeded"], within=5)
        eventually(lambda: len(service.dead_letters("letters")) == 1, within=5)
        assert b"costumer" in service.dead_letters("letters")[0]


class TestFire:
    """Calls of periodiq."""

    @pytest.fixture
    def service(self, serve):
        return serve(job("tick", schedule=every(minutes=1))(lambda run: None))

    def due(self, service, *slots):
        actor = service.broker.get_actor("tick")
        actor.options["periodic"].due = list(slots)
        return actor

    def test_slots_that_are_due_are_inserted_and_sent_once_however_often_they_are_fired(self, service, ledger):
        slots = [datetime(2026, 3, 1, 3, minute, tzinfo=UTC) for minute in range(2)]
        for _ in range(3):
            self.due(service, *slots).send_with_options(scheduled_at="2026-03-01")

        assert [row.slot for row in ledger.runs("tick")] == slots
        assert service.waiting() == 2

    def test_a_slot_of_a_pause_is_skipped_and_sent_nowhere(self, service, ledger):
        slot = datetime(2026, 3, 1, 3, tzinfo=UTC)
        ledger.do("INSERT INTO rota_pauses (scope, paused_by, paused_at) VALUES ('plugin:tests', 'ann', :at)", at=slot)

        self.due(service, slot - timedelta(minutes=1), slot).send_with_options(scheduled_at="2026-03-01")

        assert [(row.state, row.reason) for row in ledger.runs("tick")] == [("queued", None), ("skipped", "paused")]
        assert service.waiting() == 1

    def test_the_first_call_fires_what_is_due_of_every_job_in_one_statement(self, serve, ledger, database):
        jobs = [job(f"tick-{number}", schedule=every(minutes=1))(lambda run: None) for number in range(20)]
        service = serve(*jobs)
        for each in jobs:
            service.broker.get_actor(each.name).options["periodic"].due = [datetime(2026, 3, 1, tzinfo=UTC)]
        inserts = []
        event.listen(database, "before_cursor_execute", lambda *call: inserts.append(call[2]))
        for each in jobs:
            service.broker.get_actor(each.name).send_with_options(scheduled_at="x")

        assert all(ledger.states(each.name) == ["queued"] for each in jobs)
        assert service.waiting() == 20
        assert sum("INSERT INTO rota_runs" in statement for statement in inserts) == 1

    def test_without_a_database_it_does_not_raise(self, service, database, ledger, caplog):
        ledger.do("ALTER TABLE rota_runs RENAME TO rota_runs_away")
        try:
            self.due(service, datetime(2026, 3, 1, tzinfo=UTC)).send_with_options(scheduled_at="x")
        finally:
            ledger.do("ALTER TABLE rota_runs_away RENAME TO rota_runs")

        assert [event.slots for event in emitted(caplog, "slot.not_sent")] == [1]

    def test_without_redis_the_slot_is_there_and_it_does_not_raise(self, service, ledger, monkeypatch, caplog):
        def away(_):
            raise ConnectionError("away on purpose")

        monkeypatch.setattr(service.broker.redis_queues, "enqueue_many", away)
        self.due(service, datetime(2026, 3, 1, tzinfo=UTC)).send_with_options(scheduled_at="x")

        assert ledger.states("tick") == ["queued"]
        assert [event.slots for event in emitted(caplog, "slot.not_sent")] == [1]


class TestFastLane:
    """The fast lane: plain delivery, with the same session and time limits, and with exact retries."""

    def test_its_session_is_committed_and_no_row_is_made(self, serve, ledger):
        service = serve(job("fast", ledger=False)(lambda run: leave(run.session, "done")))
        service.broker.get_actor("fast").send()
        service.work()

        assert eventually(ledger.effects, within=5) == ["done"]
        assert ledger.runs("fast") == []

    def test_a_transaction_sends_it_over_redis_with_its_arguments(self, serve, ledger, database, use_jobs):
        @job("fast", ledger=False)
        def fast(run, note: str):
            leave(run.session, note)

        use_jobs(fast)
        serve(fast).work()
        with Session(database) as session, session.begin():
            send(session, "fast", args={"note": "sent"})

        assert eventually(ledger.effects, within=5) == ["sent"]

    def test_a_failed_attempt_is_rolled_back_and_tried_again_after_exactly_its_delay(self, serve, ledger):
        attempts = []

        @job("fast", ledger=False, max_retries=2, retry_delay=timedelta(milliseconds=400))
        def fast(run):
            attempts.append(time.monotonic())
            leave(run.session, f"attempt {len(attempts)}")
            if len(attempts) < 3:
                raise RuntimeError("failed on purpose")

        service = serve(fast)
        service.broker.get_actor("fast").send()
        service.work(poll_ms=20)

        assert eventually(ledger.effects, within=10) == ["attempt 3"]
        gaps = [later - earlier for earlier, later in pairwise(attempts)]
        assert all(0.39 <= gap < 1.5 for gap in gaps)
        eventually(lambda: quiet(service, "default"), within=5)
        assert service.dead_letters() == []

    def test_after_its_retries_it_is_a_dead_letter(self, serve, ledger):
        attempts = []

        @job("fast", ledger=False, max_retries=2, retry_delay=timedelta(milliseconds=1))
        def fast(run):
            attempts.append(1)
            raise RuntimeError("failed on purpose")

        service = serve(fast)
        service.broker.get_actor("fast").send()
        service.work(poll_ms=20)

        (letter,) = eventually(service.dead_letters, within=10)
        assert len(attempts) == 3
        assert Message.decode(letter).options["retries"] == 2

    def test_without_retries_the_first_failure_is_the_end(self, serve):
        @job("fast", ledger=False, max_retries=0)
        def fast(run):
            raise RuntimeError("failed on purpose")

        service = serve(fast)
        service.broker.get_actor("fast").send()
        service.work()

        assert len(eventually(service.dead_letters, within=5)) == 1

    def test_wrong_arguments_are_a_dead_letter_at_once(self, serve, ledger):
        service = serve(job("fast", ledger=False)(lambda run: leave(run.session, "never")))
        service.broker.get_actor("fast").send(surprise=1)
        service.work()

        assert len(eventually(service.dead_letters, within=5)) == 1
        assert ledger.effects() == []

    def test_a_retry_waits_for_redis_and_is_not_lost(self, serve, ledger, monkeypatch):
        failed, waits = threading.Event(), []

        @job("fast", ledger=False, max_retries=1, retry_delay=timedelta(milliseconds=1))
        def fast(run):
            if not failed.is_set():
                failed.set()
                raise RuntimeError("failed on purpose")
            leave(run.session, "done")

        service = serve(fast)
        queues = service.broker.redis_queues
        push = queues.push

        def away_at_first(messages):
            if failed.is_set() and not waits:
                waits.append(1)
                raise redis.ConnectionError("away on purpose")
            push(messages)

        monkeypatch.setattr(queues, "push", away_at_first)
        service.broker.get_actor("fast").send()
        service.work(poll_ms=20)

        assert eventually(ledger.effects, within=10) == ["done"]
        assert waits == [1]

    def test_its_soft_limit_is_a_failure(self, serve):
        @job("fast", ledger=False, max_retries=0, soft_limit=timedelta(milliseconds=100))
        def fast(run):
            while True:
                time.sleep(0.01)

        service = serve(fast)
        service.broker.get_actor("fast").send()
        service.work()

        assert len(eventually(service.dead_letters, within=5)) == 1

    def test_a_delayed_message_comes_after_its_delay(self, serve, ledger):
        came = []
        service = serve(job("fast", ledger=False)(lambda run: came.append(time.monotonic())))
        service.work(poll_ms=20)
        sent_at = time.monotonic()
        service.broker.get_actor("fast").send_with_options(delay=300)

        assert 0.29 <= eventually(lambda: came, within=5)[0] - sent_at < 2
