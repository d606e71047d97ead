"""I4, I5: an attempt for which PostgreSQL has no connection is not counted; the run is released."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, text

from core import database as databases
from core import job
from core.ledger import turns
from core.ledger.claims import Verdict
from core.ledger.turns import Turn
from core.testing import Member, RunJob
from core.worker.executor import Executor
from tests.support.effects import leave
from tests.support.emitted import emitted


@pytest.fixture
def own(postgres_url: str) -> Iterator[Engine]:
    """Yield an engine that only the jobs use."""
    engine = databases.connect(postgres_url)
    yield engine
    databases.dispose(engine)


@pytest.fixture
def run_on_own(own: Engine, process: Any) -> RunJob:
    """Return a function that runs jobs on that engine."""
    return RunJob(Executor(own, Member(process.id), "test:1"))


@pytest.fixture
def admit(ledger: Any) -> Iterator[Any]:
    """Let PostgreSQL admit or refuse new connections to this database."""

    def admit(is_admitted: bool) -> None:
        ledger.do(f"UPDATE pg_database SET datallowconn = {is_admitted} WHERE datname = current_database()")

    with ledger.engine.connect():  # kept in the pool, so that connections can be admitted again
        yield admit
        admit(True)


def once(function: Any, **options: Any) -> Any:
    return job("work", **{"max_retries": 0, **options})(function)


def using_session_while(admit: Any, own: Engine) -> Any:
    """Return a job whose first statement gets no connection."""

    def function(run: Any) -> None:
        own.dispose()
        admit(False)
        try:
            run.session.execute(text("SELECT 1"))
        finally:
            admit(True)

    return function


def assert_released(row: Any) -> None:
    assert (row.state, row.reason, row.attempt, row.failures, row.crashes) == ("retrying", "no connection", 0, 0, 0)
    assert (row.process_id, row.sent_at, row.token, row.finished_at) == (None, None, None, None)
    assert row.error.startswith("no connection since ")


def test_a_connection_that_is_refused_is_no_failed_attempt(run_on_own, own, admit, caplog):
    row = run_on_own(once(using_session_while(admit, own)))

    assert_released(row)
    assert "not currently accepting connections" in row.error
    assert timedelta(0) < row.due_at - row.started_at < timedelta(seconds=30)
    (event,) = emitted(caplog, "run.not_connected")
    assert (event.run, event.state) == (row.id, "retrying")


def test_it_is_none_whatever_the_job_makes_of_the_error(run_on_own, own, admit):
    def function(run):
        try:
            using_session_while(admit, own)(run)
        except Exception:  # noqa: BLE001 — as a careless job does
            raise ValueError("something is wrong") from None

    assert_released(run_on_own(once(function)))


def test_a_pool_that_has_none_to_give_is_no_failed_attempt(run_on_own, own):
    own.pool._timeout = 0.1
    held = []

    def function(run):
        held.extend(own.connect() for _ in range(own.pool.size()))
        run.session.execute(text("SELECT 1"))

    work = once(function)
    run_id = run_on_own.request(work)
    assert run_on_own.executor.execute(work, run_id) == "released"
    for connection in held:
        connection.close()

    assert_released(run_on_own.row(run_id))


def test_a_connection_of_the_jobs_own_that_is_refused_is_its_failure(run_on_own):
    def function(run):
        psycopg2.connect("host=127.0.0.1 port=1 connect_timeout=1")

    row = run_on_own(once(function))

    assert (row.state, row.reason, row.attempt, row.failures) == ("dead", "retries", 1, 1)


def test_the_run_is_tried_again_and_succeeds(run_on_own, own, admit, ledger):
    failing = using_session_while(admit, own)
    calls = []

    def function(run):
        calls.append(run.attempt)
        if len(calls) == 1:
            failing(run)
        leave(run.session, "done")

    work = once(function)
    row = run_on_own(work)
    ledger.do("UPDATE rota_runs SET due_at = clock_timestamp()")
    run_on_own.executor.execute(work, row.id)

    row = run_on_own.row(row.id)
    assert (row.state, row.attempt, row.failures, row.error) == ("succeeded", 1, 0, None)
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("since_minutes", "columns", "state", "wait_seconds"),
    [
        (1, {}, "retrying", 30),
        (30, {}, "retrying", 60),
        (61, {}, "dead", None),
        (61, {"retried_at": "now"}, "retrying", 1),  # a person has retried the run, so it is tried
        (61, {"waited": True}, "retrying", 1),  # the run has waited, for example in a pause
    ],
    ids=str,
)
def test_after_an_hour_of_nothing_else_it_is_dead(
    run_on_own, own, admit, ledger, since_minutes, columns, state, wait_seconds, caplog
):
    work = once(using_session_while(admit, own))
    run_id = run_on_own.request(work)
    since = datetime.now(UTC) - timedelta(minutes=since_minutes)
    ledger.do(
        "UPDATE rota_runs SET error = :error, state = 'retrying', due_at = :due_at,"
        " retried_at = CASE WHEN :is_retried THEN now() END WHERE id = :id",
        error=f"no connection since {since:%Y-%m-%dT%H:%M:%SZ}: FATAL: sorry",
        due_at=since if "waited" in columns else datetime.now(UTC) - timedelta(seconds=1),
        is_retried="retried_at" in columns,
        id=run_id,
    )
    run_on_own.executor.execute(work, run_id)

    row = run_on_own.row(run_id)
    assert (row.state, row.reason, row.failures) == (state, "no connection", 0)
    assert (row.finished_at is None) == (state == "retrying")
    if wait_seconds is not None:
        assert abs((row.due_at - row.started_at).total_seconds() - wait_seconds) < 10
    assert emitted(caplog, "run.not_connected")[0].state == state


class TestItsPlace:
    """I6: a run without a connection stays before the runs of its key that were requested later, and rests there."""

    @pytest.fixture
    def asked(self, run_on_own: RunJob, own: Engine, admit: Any, ledger: Any) -> list[int]:
        """Return two requests of one key. The first one's attempt got no connection."""
        work = once(using_session_while(admit, own), overlap="wait")
        asked = [run_on_own.request(work, key="a") for _ in range(2)]
        self.due_at = ledger.run(asked[0]).due_at
        assert run_on_own.executor.execute(work, asked[0]) == "released"
        return asked

    def woken(self, ledger: Any) -> list[int]:
        """Wake the next run of the key, as the process does in which a run has ended; return it."""
        with databases.autocommit(ledger.engine) as connection:
            return [run.run_id for run in turns.wake(connection, [Turn("work", "a")], carried=True)]

    def ended_earlier(self, ledger: Any, run_id: int, **earlier: int) -> None:
        """Let the released attempt have ended earlier."""
        changed = "UPDATE rota_attempts SET ended_at = ended_at - :span WHERE run_id = :id"
        assert ledger.do(changed, span=timedelta(**earlier), id=run_id) == 1

    def test_no_later_run_of_its_key_overtakes_it(self, asked, process, ledger):
        first, second = asked

        assert ledger.run(first).due_at == self.due_at
        assert process.claim(ledger.engine, second)[0] == Verdict.WAITING
        assert self.woken(ledger) == []

    def test_it_is_tried_again_after_its_rest(self, asked, process, ledger):
        first, second = asked
        process.claim(ledger.engine, second)
        self.ended_earlier(ledger, first, seconds=1)

        assert self.woken(ledger) == [first]

        assert process.claim(ledger.engine, second)[0] == Verdict.WAITING
        assert process.claim(ledger.engine, first)[0] == Verdict.RUNNING

    def test_it_rests_for_half_the_time_without_a_connection(self, asked, ledger):
        first = asked[0]
        since = datetime.now(UTC) - timedelta(minutes=1)
        said = f"no connection since {since:%Y-%m-%dT%H:%M:%SZ}: FATAL: sorry"
        ledger.do("UPDATE rota_runs SET error = :error WHERE id = :id", error=said, id=first)

        self.ended_earlier(ledger, first, seconds=10)  # of 50 s without a connection, it rests for 25
        assert self.woken(ledger) == []
        self.ended_earlier(ledger, first, seconds=20)  # of 30 s, it rests for 15
        assert self.woken(ledger) == [first]

    @pytest.mark.parametrize(("last_minutes", "state"), [(1, "dead"), (70, "retrying")], ids=str)
    def test_after_an_hour_it_is_dead_however_long_ago_it_was_due(
        self, asked, run_on_own, own, admit, ledger, last_minutes, state
    ):
        first = asked[0]
        since = datetime.now(UTC) - timedelta(minutes=61)
        said = f"no connection since {since:%Y-%m-%dT%H:%M:%SZ}: FATAL: sorry"
        change = "UPDATE rota_runs SET error = :error, due_at = due_at - interval '3 hours' WHERE id = :id"
        ledger.do(change, error=said, id=first)
        self.ended_earlier(ledger, first, minutes=last_minutes)

        run_on_own.executor.execute(once(using_session_while(admit, own), overlap="wait"), first)

        assert ledger.run(first).state == state


def test_an_idle_connection_that_was_cut_is_replaced_before_the_job_has_it(run_on_own, own, ledger):
    calls = []

    def function(run):
        calls.append(run.attempt)
        pids = []
        for connection in [own.connect() for _ in range(3)]:
            pids.append(connection.connection.driver_connection.info.backend_pid)
            connection.close()
        for pid in pids:
            assert ledger.value("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        leave(run.session, "done")

    row = run_on_own(once(function))

    assert (row.state, row.attempt, calls, ledger.effects()) == ("succeeded", 1, [1], ["done"])


def test_a_connection_that_is_cut_before_its_first_answer_has_the_attempt_repeated(run_on_own, ledger):
    calls = []

    def function(run):
        calls.append(run.attempt)
        pid = run.session.connection().connection.driver_connection.info.backend_pid
        if len(calls) == 1:
            assert ledger.value("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        leave(run.session, "done")

    row = run_on_own(once(function))

    assert (row.state, row.attempt, row.failures, calls) == ("succeeded", 1, 0, [1, 1])
