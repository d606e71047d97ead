"""Statistics of jobs: runs are counted after their end, each once, and durations in classes."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from core import job, upkeep
from core.cli import main
from core.ledger import run_counts
from tests.support.web import bearer

MINUTE = timedelta(minutes=1)


@job("poll", queue="mail")
def poll(run):
    """Poll."""


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    return use_jobs(poll, upkeep.count_runs)


@pytest.fixture
def began():
    """Return the beginning of a minute that was counted long ago."""
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=30)


@pytest.fixture
def ended(ledger):
    """Return a function that inserts runs of ``poll`` that have ended."""

    def ended(at, count=1, *, state="succeeded", ms=100, **columns):
        given = {"state": state, "finished_at": at, **columns}
        if state in ("succeeded", "dead"):
            given["started_at"] = at - timedelta(milliseconds=ms)
        return [ledger.request("poll", queue="mail", **given) for _ in range(count)]

    return ended


@pytest.fixture
def count(database):
    """Return a function that counts what has ended."""

    def count():
        with Session(database) as session, session.begin():
            return run_counts.count(session, checkpoint=lambda _progress: None)

    return count


@pytest.fixture
def statistics(client, database):
    """Return a function that asks for the statistics of ``poll``."""
    operator = bearer(database, "operator")

    def statistics(status=200, name="poll", **asked):
        answer = client.get(f"/api/v1/jobs/{name}/statistics", params=asked, headers=operator)
        assert answer.status_code == status, answer.text
        return answer.json()

    return statistics


def test_runs_are_counted_by_outcome_and_duration(ended, count, statistics, began):
    ended(began, 98, ms=100)
    ended(began + MINUTE, ms=8000)
    ended(began + MINUTE, state="dead", reason="retries", ms=60_000)
    ended(began + MINUTE, 2, state="dead", reason="cancelled")
    ended(began + MINUTE, state="missed", slot=began)

    assert count() == 103

    found = statistics(since="1h")
    total = found["total"]
    assert [total[name] for name in ("succeeded", "dead", "withdrawn", "missed", "skipped")] == [99, 1, 2, 1, 0]
    assert total["took_seconds"]["p50"] == pytest.approx(0.1, rel=0.2)
    assert total["took_seconds"]["p99"] == pytest.approx(8, rel=0.2)
    assert [step["succeeded"] for step in found["items"]] == [98, 1]
    assert [datetime.fromisoformat(step["at"]) for step in found["items"]] == [began, began + MINUTE]
    assert datetime.fromisoformat(found["counted_until"]) == began + 2 * MINUTE


def test_a_run_is_counted_once_however_often_runs_are_counted(ended, count, statistics, began):
    ended(began, 3)
    count()
    ended(began + MINUTE, 2)
    count()
    count()

    assert statistics(since="1h")["total"]["succeeded"] == 5


def test_a_run_that_is_visible_late_is_counted_too(ended, count, statistics, began):
    """A run has the time of its end before its transaction is committed."""
    ended(began + timedelta(minutes=4))
    count()
    ended(began + MINUTE)
    count()

    assert statistics(since="1h")["total"]["succeeded"] == 2


def test_the_last_seconds_are_not_counted_yet(ended, count, ledger):
    ended(datetime.now(UTC))

    assert count() == 0


def test_a_long_history_is_counted_in_batches(database, ended, statistics, began, monkeypatch):
    monkeypatch.setattr(run_counts, "BATCH", 5)
    for minute in range(6):
        ended(began + minute * MINUTE, 3)
    batches = []

    with Session(database) as session, session.begin():
        assert run_counts.count(session, checkpoint=batches.append) == 18

    assert len(batches) >= 3
    assert statistics(since="1h")["total"]["succeeded"] == 18


@pytest.mark.parametrize("is_counted_before", [False, True])
def test_old_runs_are_counted_by_the_hour(ended, count, ledger, statistics, is_counted_before):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=5)
    if is_counted_before:
        ended(hour - timedelta(hours=5))
        count()
    for minute in (1, 2, 59):
        ended(hour + minute * MINUTE, 2)
    ended(hour + timedelta(hours=2))
    count()
    count()

    rows = ledger.rows("SELECT * FROM rota_run_counts WHERE minute >= :hour ORDER BY minute", hour=hour)
    assert [(row.minute, row.runs) for row in rows] == [
        (hour, 6),
        (hour + timedelta(hours=2), 1),
    ]
    found = statistics(since="6d")
    assert found["step_seconds"] >= 3600
    assert found["total"]["succeeded"] == 7 + is_counted_before


def test_a_count_of_the_history_that_was_interrupted_goes_on(database, ended, count, statistics):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=5)
    for minute in (58, 59, 60, 61, 119, 120, 180, 60 * 24):
        ended(hour + minute * MINUTE)

    def interrupt(progress):
        session.commit()
        if progress["counted"] > 4:
            raise RuntimeError("killed")

    with Session(database) as session, pytest.raises(RuntimeError):
        run_counts.count(session, checkpoint=interrupt)
    count()
    count()

    assert statistics(since="6d")["total"]["succeeded"] == 8


def test_old_minutes_that_are_counted_again_are_not_summed_up_before(ended, count, statistics):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=5)
    ended(hour - MINUTE, 2)
    ended(hour)
    count()
    count()
    count()

    assert statistics(since="6d")["total"]["succeeded"] == 3


def test_the_job_counts(ended, run_job, statistics, began):
    ended(began, 2)

    assert run_job(upkeep.count_runs).result == {"counted": 2}
    assert statistics()["total"]["succeeded"] == 2


def test_nothing_is_counted_of_an_empty_ledger(count, statistics):
    assert count() == 0

    found = statistics()
    assert (found["items"], found["counted_until"], found["total"]["took_seconds"]) == ([], None, None)


@pytest.mark.parametrize(
    ("status", "asked"),
    [(409, {"since": "1h", "until": "2h"}), (409, {"since": "soon"}), (404, {"name": "pull"})],
)
def test_what_cannot_be_counted_is_refused(statistics, status, asked):
    assert statistics(status=status, **asked)["detail"]


def test_a_long_span_has_few_steps(ended, count, statistics, began):
    ended(began)
    count()

    found = statistics(since="52w")

    assert found["step_seconds"] == 7 * 24 * 3600
    assert len(found["items"]) == 1


def test_the_command_shows_the_counts(ended, count, began):
    ended(began, 2)
    ended(began, state="dead", reason="retries", ms=3000)
    count()

    told = CliRunner().invoke(main, ["jobs", "poll", "--since", "1h"])
    whole = CliRunner().invoke(main, ["jobs", "poll", "--json"])

    assert told.exit_code == 0, told.output
    assert "in all" in told.output
    assert "counted until" in told.output
    assert json.loads(whole.stdout)["total"]["dead"] == 1
