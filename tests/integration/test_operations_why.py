"""Explanations why a job did or did not run, without a command line."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core import cron, every, job
from core.errors import BadTime, UnknownJob
from core.operations import why
from core.plugins import loading

#: Three o'clock in London on a day in winter.
THREE = datetime(2026, 1, 15, 3, tzinfo=UTC)


@job("close-day", queue="billing", schedule=cron("0 3 * * *", tz="Europe/London"), misfire_grace=timedelta(hours=1))
def close_day(run: Any, region: str = "uk") -> None:
    """Close the day."""


@job("tick", queue="billing", schedule=every(seconds=30))
def tick(run: Any) -> None:
    """Tick."""


@job("by-hand", queue="billing")
def by_hand(run: Any, count: int) -> None:
    """Run by hand."""


@job("half-past-one", queue="billing", schedule=cron("30 1 * * *", tz="Europe/London"))
def half_past_one(run: Any) -> None:
    """Run near a clock change."""


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    use_jobs(close_day, tick, by_hand)


@pytest.fixture
def ask(database):
    """Return a function that asks. It returns whether the job succeeded, and the sentences."""

    def ask(job, at, key=""):
        with database.connect() as connection:
            found = why.ask(connection, loading.current(), job, at=at, key=key)
        return found.succeeded, "\n".join(found.answer)

    return ask


@pytest.mark.parametrize("bad", ["noon", "25:00", "2026-13-01", ""])
def test_what_is_no_time_names_its_option(ask, bad):
    with pytest.raises(BadTime, match="is not a time") as refused:
        ask("close-day", bad)

    assert refused.value.option == "at"


def test_an_unknown_job_is_refused_with_the_nearest_name(ask):
    with pytest.raises(UnknownJob, match="'close-dya'; did you mean 'close-day'"):
        ask("close-dya", "03:00")


def test_a_success_names_its_worker_and_its_lateness(ask, ledger):
    attempt = {
        "attempt": 1,
        "started_at": THREE + timedelta(seconds=0.05),
        "finished_at": THREE + timedelta(seconds=9),
    }
    kept = {"worker": "host:7", "result": '{"closed": 3}'}
    ledger.request("close-day", slot=THREE, state="succeeded", queued_at=THREE, **attempt, **kept)

    succeeded, answer = ask("close-day", "2026-01-15T03:00")

    assert succeeded
    assert "for the slot 2026-01-15 03:00:00 GMT succeeded in 8.95 s on host:7" in answer
    assert "closed 3" in answer
    assert "It started in time, after 50 ms." in answer


def test_a_skipped_slot_names_the_run_in_its_way(ask, ledger):
    at_work = {"started_at": THREE - timedelta(hours=1), "finished_at": THREE + timedelta(hours=1)}
    yesterday = THREE - timedelta(days=1)
    rival = ledger.request("close-day", slot=yesterday, state="succeeded", attempt=1, worker="host:7", **at_work)
    ledger.request("close-day", slot=THREE, state="skipped", reason="overlap", finished_at=THREE)

    succeeded, answer = ask("close-day", "2026-01-15T03:00")

    assert not succeeded
    assert "another run was still running" in answer
    assert f"That was run {rival} (for the slot 2026-01-14 03:00:00 GMT), which ran on host:7" in answer


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("grace", "no worker started it within its grace of 60 min"),
        ("overlap", "waited for another run of the same job and key until the end of its grace of 60 min"),
        ("superseded", "misfire='latest' runs only the newest"),
        ("policy", "misfire='skip'"),
        ("capped", "misfire='all' runs only the newest 1000 late slots"),
    ],
)
def test_a_missed_slot_says_by_which_policy(ask, ledger, reason, said):
    ledger.request("close-day", slot=THREE, state="missed", reason=reason, finished_at=THREE + timedelta(hours=2))
    ledger.request("close-day", slot=THREE + timedelta(days=1), state="queued")

    succeeded, answer = ask("close-day", "2026-01-15T03:00")

    assert (succeeded, said in answer) == (False, True)
    assert ("ran instead" in answer) == (reason == "superseded")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"state": "dead", "reason": "retries", "error": "ValueError: x", "failures": 4},
            "all its 4 attempts failed",
        ),
        (
            {"state": "dead", "reason": "crashes", "crashes": 3},
            "3 workers died or sent no heartbeat while working on it",
        ),
        ({"state": "dead", "reason": "arguments", "error": "BadArguments: x"}, "its arguments do not fit"),
        ({"state": "dead", "reason": "result", "error": "BadResult: x"}, "its result cannot be stored"),
        ({"state": "retrying", "reason": "error", "error": "ValueError: x"}, "its attempt 1 failed: ValueError: x"),
        ({"state": "retrying", "reason": "worker died"}, "died or sent no heartbeat during attempt 1"),
        ({"state": "retrying", "reason": "its worker was stopped"}, "was stopped during attempt 1"),
        ({"state": "retrying", "reason": "overlap"}, "another run of the same job and key is running"),
        ({"state": "queued", "reason": "overlap"}, "another run of the same job and key is running or comes first"),
        ({"state": "skipped", "reason": "retrying"}, "an earlier slot of the same job and key was still being retried"),
        ({"state": "skipped", "reason": "superseded"}, "a newer slot was waiting"),
        ({"state": "running", "process_id": 99}, "That worker is no longer alive"),
        ({"state": "queued"}, "has not been started"),
        ({"state": "orphaned"}, "no live process had its job."),
        ({"state": "orphaned", "reason": "broken"}, "had its job, since its plugin was broken"),
        ({"state": "orphaned", "reason": "absent"}, "It is adopted automatically when a process with the job is back."),
        ({"state": "retrying", "reason": "adopted"}, "a person has adopted it"),
        ({"state": "retrying", "reason": "by hand"}, "it was dead, and a person has retried it"),
        (
            {"state": "dead", "reason": "dropped", "former_state": "queued"},
            "has dropped it; its state before was queued",
        ),
        ({"state": "skipped", "reason": "paused"}, "was skipped: its job was paused"),
    ],
)
def test_every_state_and_reason_has_a_story(ask, ledger, columns, said):
    finished = THREE if columns["state"] in {"dead", "orphaned", "skipped"} else None
    at_work = {"attempt": 1, "worker": "host:7", "started_at": THREE}
    ledger.request("close-day", slot=THREE, finished_at=finished, due_at=THREE, **at_work, **columns)

    succeeded, answer = ask("close-day", "2026-01-15T03:00")

    assert not succeeded
    assert said in answer


def test_a_time_that_is_no_slot_names_the_nearest_ones(ask):
    succeeded, answer = ask("close-day", "2026-01-15T04:00")

    assert not succeeded
    assert "was not due at 2026-01-15 04:00:00 GMT: its schedule is '0 3 * * * Europe/London'" in answer
    assert "2026-01-15 03:00:00 GMT (not on record) and 2026-01-16 03:00:00 GMT (not on record)" in answer


def test_a_slot_before_its_accounting_began_says_so(ask, ledger):
    ledger.do("INSERT INTO rota_schedules VALUES ('close-day', '0 3 * * * Europe/London', now())")

    _, answer = ask("close-day", "2026-01-15T03:00")

    assert "is not on record; none of its slots is" in answer


def test_a_slot_that_is_not_accounted_for_yet_says_that_no_worker_is_alive(ask, ledger):
    ledger.do("INSERT INTO rota_schedules VALUES ('close-day', '0 3 * * * Europe/London', '2026-01-14 04:00Z')")

    _, answer = ask("close-day", "2026-01-15T03:00")

    assert "is not on record yet" in answer
    assert "No worker is alive now" in answer


def test_a_job_that_no_worker_has_ever_seen_says_so(ask):
    assert "no worker has ever run with this job" in ask("close-day", "2026-01-15T03:00")[1]


def test_the_future_is_in_the_future(ask):
    assert "has yet to come, in " in ask("close-day", "2199-01-15T03:00")[1]


def test_a_minute_with_several_slots_tells_of_the_first_and_counts_the_others(ask, ledger):
    ledger.request(
        "tick", slot=THREE, state="succeeded", attempt=1, started_at=THREE, finished_at=THREE, queued_at=THREE
    )

    succeeded, answer = ask("tick", "2026-01-15T03:00")

    assert succeeded
    assert "One more slot came due in that time: 1 not on record" in answer


def test_a_request_at_that_time_is_told_of(ask, ledger):
    run_id = ledger.request("by-hand", key="k", queued_at=THREE + timedelta(seconds=4))

    for key in ("", "k"):
        succeeded, answer = ask("by-hand", "2026-01-15T03:00", key)
        assert not succeeded
        assert f"Run {run_id}, requested 2026-01-15 03:00:04 UTC, has been due since" in answer


def test_a_job_without_schedule_and_request_says_so(ask, ledger):
    ledger.request("by-hand", queued_at=THREE)

    _, answer = ask("by-hand", "2026-01-15T04:00")

    assert "by-hand has no schedule; it runs by request" in answer
    assert re.search(r"The last request before that was run \d+, 2026-01-15 03:00:00 UTC: queued", answer)


def test_a_time_that_the_clocks_skip_finds_the_slot_after_the_gap(ask, ledger, use_jobs):
    use_jobs(half_past_one)
    one = datetime(2026, 3, 29, 1, tzinfo=UTC)
    ledger.request("half-past-one", slot=one, state="missed", reason="policy", finished_at=one)

    _, answer = ask("half-past-one", "2026-03-29T01:30")

    assert "01:30 on 2026-03-29 did not exist in Europe/London" in answer
    assert "for the slot 2026-03-29 02:00:00 BST was missed" in answer


def test_a_time_that_comes_twice_finds_the_slot_of_either(ask, ledger, use_jobs):
    use_jobs(half_past_one)
    half_past = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    ledger.request("half-past-one", slot=half_past, state="missed", reason="policy", finished_at=half_past)

    _, answer = ask("half-past-one", "2026-10-25T01:30")

    assert "occurred twice in Europe/London" in answer
    assert "for the slot 2026-10-25 01:30:00 BST was missed" in answer


def test_a_run_of_a_job_that_no_release_had_yet_waits_for_it(ask, ledger, start_process):
    start_process(jobs=[close_day])
    at = ledger.run(ledger.request("open-day")).queued_at

    _, answer = ask("open-day", at.isoformat())

    assert "No plugin that is loaded here has open-day" in answer
    assert "No release that ran here has had its job yet. Its runs wait for workers with the job." in answer


def test_a_run_of_a_job_that_no_live_process_has_says_what_becomes_of_it(ask, ledger, start_process, database):
    start_process(jobs=[by_hand]).expire(database)
    start_process(jobs=[close_day])
    at = ledger.run(ledger.request("by-hand")).queued_at

    _, answer = ask("by-hand", at.isoformat())

    assert "No live process has its job: its waiting runs are orphaned after ROTA_ORPHAN_SECONDS." in answer


def test_a_request_that_has_expired_says_so_and_one_that_waits_says_when(ask, ledger):
    asked = {"queued_at": THREE, "due_at": THREE, "expires_at": THREE + timedelta(minutes=5)}
    ledger.request("by-hand", **asked, state="missed", reason="expired", finished_at=THREE + timedelta(minutes=6))
    ledger.request("by-hand", **asked)

    _, answer = ask("by-hand", "2026-01-15T03:00")

    assert "was missed: it had not started by 2026-01-15 03:05:00 UTC, when it expired." in answer
    assert "It is missed if it has not started by 2026-01-15 03:05:00 UTC." in answer


def test_a_postponed_run_says_until_when_and_why(ask, ledger):
    later = {"reason": "later", "attempt": 1, "laters": 1, "error": "Later: 429", "queued_at": THREE}
    ledger.request("close-day", slot=THREE, due_at=datetime(2099, 1, 1, tzinfo=UTC), **later)
    ledger.request("by-hand", state="retrying", due_at=datetime(2099, 1, 1, tzinfo=UTC), **later)
    ledger.request("by-hand", state="dead", finished_at=THREE, **later)

    _, slot = ask("close-day", "2026-01-15T03:00")
    _, requests = ask("by-hand", "2026-01-15T03:00")

    assert "was postponed by its function until 2099-01-01 00:00:00 GMT: Later: 429." in slot
    assert "will be tried again at 2099-01-01 00:00:00 UTC: its function has postponed it (Later: 429)." in requests
    assert "its function has postponed it for longer than is allowed (Later: 429)." in requests
