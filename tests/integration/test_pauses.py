"""Pauses: slots that come due in a pause are skipped; requests and retries wait until the pause has ended."""

from datetime import timedelta
from functools import partial

import pytest

from core import database as databases
from core import every, job
from core.dispatcher.accounting import Accountant
from core.dispatcher.loop import Dispatcher
from core.errors import PauseError
from core.ledger import claims, pauses, slots
from core.ledger.claims import Verdict
from core.ledger.slots import SlotRow, Watermark
from core.observability.events import RunPaused, SlotSkipped
from core.scheduling.misfires import miss_late
from core.testing import registry_of
from tests.support.emitted import emitted
from tests.support.racing import race

SCOPES = ("everything", "plugin:tests", "queue:mail", "job:work")


@job("work", queue="mail", schedule=every(minutes=15), retry_delay=timedelta(0))
def work(run):
    pass


@job("other", queue="other")
def other(run):
    pass


@job("failing", queue="mail", retry_delay=timedelta(0))
def failing(run):
    raise ValueError("no")


@pytest.fixture(autouse=True)
def registry(use_jobs):
    return use_jobs(work, other, failing)


@pytest.fixture
def connection(database):
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def pause(database):
    """Insert a pause of a scope that began some time ago, for some time."""

    def pause(scope="job:work", *, until=None, by="ann", reason=None, **ago):
        with database.begin() as connection:
            begun = pauses.begin(connection, scope, by=by, reason=reason, until=until)
            if ago:
                connection.exec_driver_sql(
                    "UPDATE rota_pauses SET paused_at = clock_timestamp() - %s WHERE id = %s",
                    (timedelta(**ago), begun.id),
                )
        return begun

    return pause


@pytest.fixture
def resume(database):
    def resume(scope="job:work"):
        with database.begin() as connection:
            return pauses.end(connection, scope)

    return resume


@pytest.fixture
def now(ledger):
    return lambda: ledger.value("SELECT clock_timestamp()")


@pytest.fixture
def claim(database, process):
    def claim(run_id, job="work", scopes=SCOPES):
        with databases.autocommit(database) as connection:
            return claims.claim(connection, run_id, job=job, process_id=process.id, worker="test:1", scopes=scopes)[0]

    return claim


class TestBeginAndEnd:
    def test_of_10_who_pause_at_once_one_does(self, database, ledger):
        def begin(number):
            try:
                with database.begin() as connection:
                    return pauses.begin(connection, "queue:mail", by=f"user {number}", reason=None, until=None)
            except PauseError as error:
                return str(error)

        for round_ in range(1, 11):
            answers = race(*[partial(begin, number) for number in range(10)])
            (begun,) = [answer for answer in answers if not isinstance(answer, str)]
            refusal = f"queue:mail is paused already, by {begun.paused_by}; resume it first"
            assert answers.count(refusal) == 9
            assert ledger.value("SELECT count(*) FROM rota_pauses WHERE until = 'infinity'") == 1
            ledger.do("UPDATE rota_pauses SET until = clock_timestamp() WHERE until = 'infinity'")
            assert ledger.value("SELECT count(*) FROM rota_pauses") == round_

    def test_a_pause_ends_by_itself(self, pause, now, connection):
        pause(until=now() + timedelta(hours=1))
        assert [found.scope for found in pauses.active(connection)] == ["job:work"]

        pause("job:other", until=now() + timedelta(milliseconds=1))
        connection.exec_driver_sql("SELECT pg_sleep(0.01)")

        assert [found.scope for found in pauses.active(connection)] == ["job:work"]

    def test_what_has_ended_can_be_paused_again_and_not_be_ended_twice(self, pause, resume):
        pause()
        assert resume().paused_by == "ann"
        assert resume() is None
        pause()


class TestClaim:
    """A worker tries to claim a run whose job is paused."""

    @pytest.mark.parametrize("scope", SCOPES)
    def test_a_slot_that_was_queued_before_is_skipped(self, pause, claim, ledger, now, scope):
        pause(scope)
        run_id = ledger.request(slot=now())

        assert claim(run_id) == Verdict.PAUSED

        row = ledger.run(run_id)
        assert (row.state, row.reason, row.attempt) == ("skipped", "paused", 0)
        assert row.finished_at is not None

    @pytest.mark.parametrize("columns", [{}, {"state": "retrying", "reason": "error", "attempt": 1, "failures": 1}])
    def test_a_request_or_a_retry_waits_unsent_and_as_it_is(self, pause, resume, claim, ledger, columns):
        pause()
        run_id = ledger.request(sent_at="now", **columns)
        before = ledger.run(run_id)

        assert claim(run_id) == Verdict.HELD

        assert ledger.run(run_id)._asdict() == {**before._asdict(), "sent_at": None}
        resume()
        assert claim(run_id) == Verdict.RUNNING

    def test_a_slot_that_is_being_retried_waits_and_is_not_skipped(self, pause, claim, ledger, now):
        pause()
        run_id = ledger.request(slot=now(), state="retrying", reason="error", attempt=1)

        assert claim(run_id) == Verdict.HELD
        assert ledger.run(run_id).state == "retrying"

    @pytest.mark.parametrize("scope", ["queue:other", "job:wor", "plugin:test", "queue:work"])
    def test_another_scope_holds_nothing(self, pause, claim, ledger, scope):
        pause(scope)

        assert claim(ledger.request()) == Verdict.RUNNING

    def test_what_is_at_work_ends_its_work(self, pause, run_job, ledger):
        seen = []

        @job("work", queue="mail")
        def pausing(run):
            seen.append(pause())

        assert run_job(pausing).state == "succeeded"
        assert seen

    def test_an_executor_names_the_scopes_of_its_job(self, pause, run_job, caplog):
        caplog.set_level("INFO", "rota")
        pause("plugin:tests")

        row = run_job(work)

        assert row.state == "queued"
        assert emitted(caplog, "run.paused") == [RunPaused("work", row.id)]

    def test_a_failed_attempt_in_a_pause_is_recorded_and_its_retry_waits(self, pause, resume, run_job, executor):
        run_id = run_job.request(failing)
        executor.execute(failing, run_id)
        pause("queue:mail")

        assert executor.execute(failing, run_id) == Verdict.HELD
        assert run_job.row(run_id).failures == 1

        resume("queue:mail")
        executor.execute(failing, run_id)
        assert run_job.row(run_id).failures == 2


class TestSlots:
    """The time at which a slot came due decides."""

    def insert(self, connection, *instants):
        return slots.insert(connection, work, [SlotRow(at) for at in instants], carried=True, scopes=SCOPES)

    def test_in_a_pause_it_is_skipped_before_and_after_it_is_queued(self, pause, resume, connection, ledger, now):
        pause(hours=1)
        resume()
        before, within, after = now() - timedelta(hours=2), now() - timedelta(minutes=30), now()

        queued = self.insert(connection, before, within, after)

        outcomes = [(row.slot, row.state, row.reason, row.sent_at is None) for row in ledger.runs("work")]
        assert outcomes == [
            (before, "queued", None, False),
            (within, "skipped", "paused", True),
            (after, "queued", None, False),
        ]
        assert len(queued) == 2

    def test_what_comes_due_in_the_instant_of_the_end_is_queued(self, connection, ledger, now):
        start = now() - timedelta(hours=2)
        ledger.do(
            "INSERT INTO rota_pauses (scope, paused_by, paused_at, until) VALUES ('job:work', 'ann', :start, :end)",
            start=start,
            end=start + timedelta(hours=1),
        )

        self.insert(connection, start, start + timedelta(hours=1))

        assert [row.state for row in ledger.runs("work")] == ["skipped", "queued"]

    def test_after_an_outage_those_in_the_pause_are_skipped_and_the_newest_of_the_others_runs(
        self, pause, resume, connection, ledger, carrier, now, registry
    ):
        pause(hours=2)
        ledger.do("UPDATE rota_pauses SET until = clock_timestamp()")
        with_slot_before = now() - timedelta(hours=3)
        slots.account(connection, {"work": Watermark(str(work.schedule), with_slot_before)})

        Accountant(registry, slots.watermarks(connection)).account(connection, carrier)

        rows = ledger.runs("work")
        assert {row.state for row in rows if row.slot > now() - timedelta(hours=2)} == {"skipped"}
        earlier = [(row.state, row.reason) for row in rows if row.slot <= now() - timedelta(hours=2)]
        assert earlier[-1] == ("queued", None)
        assert set(earlier[:-1]) == {("missed", "superseded")}

    def test_after_a_week_in_a_pause_of_every_second_looking_back_is_short(self, connection, ledger, now):
        """The search for the newest slot before the pause skips the whole pause in one step."""
        from core.scheduling.misfires import newest_first

        ticking = job("ticking", schedule=every(seconds=1))(lambda run: None)
        asked = []
        latest_at = type(ticking.schedule).latest_at
        begin = now() - timedelta(days=7)
        pause = pauses.Pause(1, "everything", None, "ann", begin, None)

        class Counting:
            def latest_at(self, instant):
                asked.append(instant)
                return latest_at(ticking.schedule, instant)

        class Job:
            schedule = Counting()

        found = next(newest_first(Job, now(), [pause]))

        assert begin - timedelta(seconds=1) <= found < begin
        assert len(asked) == 2


class TestMisfires:
    """A queued slot of a paused job is skipped under every misfire policy."""

    @pytest.mark.parametrize("misfire", ["latest", "all", "skip"])
    def test_it_is_skipped_and_not_missed(self, pause, connection, ledger, now, misfire, caplog):
        caplog.set_level("INFO", "rota")
        mine = job("work", schedule=every(minutes=1), misfire=misfire, misfire_grace=timedelta(hours=1))(lambda run: 0)
        begun = pause(hours=5)
        for minutes in (1, 30, 299, 359):  # the last slot could still have been started when the pause began
            ledger.request(slot=now() - timedelta(minutes=minutes))

        held = {"work": begun.paused_at - timedelta(hours=5)}
        miss_late(connection, registry_of(mine), held)

        assert {(row.state, row.reason) for row in ledger.runs("work")} == {("skipped", "paused")}
        assert emitted(caplog, "slot.skipped") == [SlotSkipped("work", 4, "paused")]

    def test_what_was_past_its_grace_when_the_pause_began_is_missed(self, pause, connection, ledger, now):
        mine = job("work", schedule=every(minutes=1), misfire_grace=timedelta(hours=1))(lambda run: 0)
        begun = pause()
        ledger.request(slot=now() - timedelta(hours=2))

        miss_late(connection, registry_of(mine), {"work": begun.paused_at})

        (row,) = ledger.runs("work")
        assert (row.state, row.reason) == ("missed", "grace")

    def test_requests_and_retries_are_left_to_wait(self, pause, connection, ledger, now, registry):
        begun = pause(hours=9)
        ledger.request(queued_at=now() - timedelta(days=9), due_at=now() - timedelta(days=9))
        ledger.request(slot=now() - timedelta(hours=8), state="retrying", attempt=1)

        miss_late(connection, registry, {"work": begun.paused_at - timedelta(hours=9)})

        assert sorted(ledger.states("work")) == ["queued", "retrying"]


class TestDispatcher:
    """Runs of paused jobs are not sent, and are sent after the pause."""

    @pytest.fixture
    def dispatch(self, database, registry, carrier, connection):
        """Make a pass. Return the jobs whose runs were sent."""
        carrier.maintain = lambda queues: None
        carrier.oldest_runs = lambda queue: (False, [])
        carrier.queues_with_messages = set
        made = Dispatcher(
            database, registry, carrier, every_seconds=1, resend_seconds=5, max_crashes=3, orphan_seconds=60
        )

        def dispatch():
            carrier.runs.clear()
            made.pass_once(connection, Accountant(registry, slots.watermarks(connection)))
            return sorted(run.job for run in carrier.runs)

        yield dispatch
        made.stop()

    @pytest.mark.parametrize(
        ("scope", "sent"),
        [
            ("everything", []),
            ("plugin:tests", []),
            ("queue:mail", ["other"]),
            ("job:work", ["failing", "other"]),
        ],
    )
    def test_runs_of_its_scope_are_not_sent(self, pause, dispatch, ledger, scope, sent):
        pause(scope)
        for name in ("work", "failing", "other"):
            ledger.request(name)

        assert dispatch() == sent

    def test_they_are_sent_once_it_has_ended_without_anyone_asking(self, pause, dispatch, ledger, connection, now):
        pause(until=now() + timedelta(seconds=0.3))
        ledger.request("work")
        assert dispatch() == []

        connection.exec_driver_sql("SELECT pg_sleep(0.35)")

        assert dispatch() == ["work"]

    def test_jobs_that_only_another_live_process_has_are_held_too(self, pause, dispatch, ledger, start_process):
        foreign = job("foreign", queue="elsewhere")(lambda run: None)
        start_process(jobs=[foreign], plugin="theirs")
        ledger.request("foreign")
        pause("plugin:theirs")

        assert dispatch() == []

        ledger.do("UPDATE rota_pauses SET until = clock_timestamp()")
        assert dispatch() == ["foreign"]


class TestClaimMany:
    """Claims of many runs in one statement."""

    @pytest.fixture
    def claim_many(self, database, process):
        def claim_many(*run_ids):
            with databases.autocommit(database) as connection:
                sent = [(run_id, "work", SCOPES) for run_id in run_ids]
                claimed = claims.claim_many(connection, sent, process_id=process.id, worker="test:1")
                return [lease.run_id for lease in claimed], lambda: claims.unclaim_many(connection, claimed)

        return claim_many

    @pytest.mark.parametrize("scope", SCOPES)
    def test_what_is_held_is_left_as_it_is(self, pause, resume, claim_many, ledger, scope):
        run_id = ledger.request(exclusive=False)
        pause(scope)
        before = ledger.run(run_id)

        assert claim_many(run_id)[0] == []
        assert ledger.run(run_id) == before

        resume(scope)
        assert claim_many(run_id)[0] == [run_id]

    def test_a_slot_that_is_to_be_retried_without_ever_having_begun_is_left_to_a_claim_of_its_own(
        self, claim_many, ledger, now
    ):
        """If such a claim were undone, the slot would be queued, and would be missed because it is late."""
        retrying = {"exclusive": False, "state": "retrying", "reason": "by hand"}
        never, once = ledger.request(slot=now(), **retrying), ledger.request(attempt=1, **retrying)

        assert claim_many(never, once)[0] == [once]
