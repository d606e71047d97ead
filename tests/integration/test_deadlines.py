"""``expires``: a request that has not started by its deadline is missed."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core import database as databases
from core import enqueue, enqueue_many, job
from core.clock import system_clock
from core.dispatcher.deadlines import expire
from core.errors import BadArguments, NaiveTime
from core.ledger import claims, deadlines
from core.ledger.claims import Verdict
from core.observability import metrics
from tests.support.emitted import emitted

HOUR = timedelta(hours=1)
PAST = "clock_timestamp() - interval '1 second'"


@job("work")
def work(run):
    return "worked"


@job("prompt", expires=HOUR, overlap="allow")
def prompt(run): ...


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    return use_jobs(work, prompt)


@pytest.fixture
def ask(database, ledger):
    """Request a run, and return its row."""

    def ask(name="work", **options):
        with Session(database) as session, session.begin():
            run_id = enqueue(session, name, **options)
        return ledger.run(run_id)

    return ask


def pass_deadline(ledger, *run_ids):
    ledger.do(f"UPDATE rota_runs SET expires_at = {PAST} WHERE id = ANY(:ids)", ids=list(run_ids))


def end_expired(database):
    with databases.autocommit(database) as connection:
        expire(connection)


class TestAsking:
    def test_a_span_is_counted_from_the_due_time(self, ask):
        row = ask(expires=HOUR, delay=2 * HOUR)

        assert timedelta(0) <= row.expires_at - row.due_at - HOUR < timedelta(seconds=1)

    def test_a_time_is_stored(self, ask):
        until = system_clock() + HOUR

        assert ask(expires=until).expires_at == until

    def test_a_job_has_a_span_for_requests_that_have_none(self, ask):
        assert timedelta(0) <= (row := ask("prompt")).expires_at - row.due_at - HOUR < timedelta(seconds=1)
        assert ask("prompt", expires=3 * HOUR).expires_at > system_clock() + 2 * HOUR
        assert ask().expires_at is None

    def test_many_requests_expire_together(self, database, ledger):
        until = system_clock() + HOUR
        with Session(database) as session, session.begin():
            run_ids = enqueue_many(session, "prompt", [{}, {}], expires=until)

        assert [ledger.run(run_id).expires_at for run_id in run_ids] == [until, until]

    def test_a_job_asks_with_a_deadline(self, run_job, ledger):
        def function(run):
            return run.enqueue("work", expires=HOUR)

        asking = job("asking")(function)

        assert ledger.run(run_job(asking).result).expires_at is not None

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"expires": timedelta(0)}, BadArguments, "must be more than 0"),
            ({"expires": -HOUR}, BadArguments, "must be more than 0"),
            ({"expires": timedelta.max}, BadArguments, "at most 3660 days"),
            ({"expires": 60}, BadArguments, "must be a timedelta or a datetime"),
            ({"expires": "2099-01-01"}, BadArguments, "must be a timedelta or a datetime"),
            ({"expires": datetime(2099, 1, 1)}, NaiveTime, "has no time zone"),  # noqa: DTZ001 — the mistake
            ({"expires": datetime(2026, 1, 1, tzinfo=UTC)}, BadArguments, "is past, or before the run is due"),
            (
                {"expires": datetime(2099, 1, 1, tzinfo=UTC), "delay": timedelta(days=3660 * 10)},
                BadArguments,
                "delay=.* must be between",
            ),
        ],
    )
    def test_a_deadline_that_no_run_can_meet_is_refused(self, database, ledger, options, error, words):
        with Session(database) as session, session.begin(), pytest.raises(error, match=words):
            enqueue(session, "work", **options)

        assert ledger.runs("work") == []

    def test_a_deadline_before_the_due_time_is_refused(self, database):
        with Session(database) as session, pytest.raises(BadArguments, match="before the run is due"):
            enqueue(session, "work", delay=2 * HOUR, expires=system_clock() + HOUR)


class TestExpiring:
    def test_a_run_that_has_expired_is_not_started(self, ask, executor, ledger):
        row = ask(expires=HOUR)
        pass_deadline(ledger, row.id)

        assert executor.execute(work, row.id) == Verdict.NONE
        assert ledger.run(row.id).attempt == 0

    def test_a_run_that_has_expired_is_not_claimed_ahead(self, ask, executor, database, ledger):
        late, good = ask("prompt"), ask("prompt")
        pass_deadline(ledger, late.id)

        with databases.autocommit(database) as connection:
            sent = [(late.id, "prompt", ()), (good.id, "prompt", ())]
            process_id = executor.membership.process_id
            (lease,) = claims.claim_many(connection, sent, process_id=process_id, worker="test:1")

        assert lease.run_id == good.id

    def test_the_dispatcher_ends_it_as_missed(self, ask, database, ledger, caplog, monkeypatch):
        counted = []
        monkeypatch.setattr(metrics, "runs_ended", lambda *values: counted.append(values))
        late, parked, good = ask(expires=HOUR), ask(expires=HOUR), ask(expires=HOUR)
        ledger.do("UPDATE rota_runs SET sent_at = 'infinity' WHERE id = :id", id=parked.id)
        pass_deadline(ledger, late.id, parked.id)

        end_expired(database)

        ended = ledger.run(late.id)
        assert (ended.state, ended.reason, ended.attempt) == ("missed", "expired", 0)
        assert ended.finished_at is not None
        assert [ledger.run(row.id).state for row in (parked, good)] == ["missed", "queued"]
        assert [(event.job, event.count) for event in emitted(caplog, "run.expired")] == [("work", 2)]
        assert counted == [("work", {"missed": 2})]

    def test_one_statement_ends_a_bounded_number(self, ask, database, ledger):
        rows = [ask(expires=HOUR) for _ in range(3)]
        pass_deadline(ledger, *(row.id for row in rows))

        with databases.autocommit(database) as connection:
            assert [len(deadlines.expire(connection, 2)) for _ in range(3)] == [2, 1, 0]

    @pytest.mark.parametrize("state", ["retrying", "running"])
    def test_a_deadline_binds_until_the_first_start_only(self, database, ledger, state):
        run_id = ledger.request(state=state, attempt=1, expires_at=system_clock() - HOUR)

        end_expired(database)

        assert ledger.run(run_id).state == state

    def test_a_retry_after_the_deadline_is_worked_on(self, executor, ledger):
        run_id = ledger.request(state="retrying", attempt=1, failures=1, expires_at=system_clock() - HOUR)

        assert executor.execute(work, run_id) == "succeeded"

    def test_a_run_that_another_transaction_has_locked_is_left_to_the_next_pass(self, ask, database, ledger):
        row = ask(expires=HOUR)
        pass_deadline(ledger, row.id)

        with Session(database) as other, other.begin():
            other.connection().exec_driver_sql(f"SELECT 1 FROM rota_runs WHERE id = {row.id} FOR UPDATE")
            end_expired(database)
            assert ledger.run(row.id).state == "queued"
        end_expired(database)

        assert ledger.run(row.id).state == "missed"


class TestTheReleaseBefore:
    """Claims of the previous release, which does not know deadlines."""

    OLD_CLAIM = """
        UPDATE rota_runs SET state = 'running', reason = NULL, attempt = attempt + 1, process_id = 1,
            started_at = clock_timestamp()
        WHERE id = :id
    """

    def test_cannot_start_a_run_whose_deadline_has_passed(self, ask, ledger):
        row = ask(expires=HOUR)
        pass_deadline(ledger, row.id)

        with pytest.raises(IntegrityError, match="rota_runs_starts_in_time"):
            ledger.do(self.OLD_CLAIM, id=row.id)

        assert ledger.run(row.id).state == "queued"

    @pytest.mark.parametrize(
        "before",
        [
            "expires_at = clock_timestamp() + interval '1 minute'",
            "state = 'retrying', attempt = 1",
            "state = 'retrying', error = 'no connection'",
            "state = 'retrying', retried_at = clock_timestamp()",
        ],
        ids=["in time", "started before", "started without a connection", "retried by hand"],
    )
    def test_may_start_every_other_run(self, ask, ledger, before):
        row = ask(expires=HOUR)
        pass_deadline(ledger, row.id)
        ledger.do(f"UPDATE rota_runs SET {before} WHERE id = :id", id=row.id)

        assert ledger.do(self.OLD_CLAIM, id=row.id) == 1
