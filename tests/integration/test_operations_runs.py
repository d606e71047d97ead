"""Operations on runs, requests, releases and jobs, without a command line, and the exact JSON of their results."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from core import cron, job
from core.errors import BadArguments, SelectionError, UnknownJob
from core.ledger.audit import Actor
from core.operations import jobs, listing, releases, requests
from core.operations.json_shape import jsonable
from core.operations.selection import Selection
from core.plugins import loading

NOW = datetime(2026, 1, 15, tzinfo=UTC)
ANN = Actor("ann", via="http")


@job("close-day", queue="billing", schedule=cron("0 3 * * *", tz="Asia/Kolkata"), soft_limit=timedelta(seconds=90))
def close_day(run, region: str = "uk"):
    """Close the day."""


@job("fast", queue="billing", ledger=False)
def fast(run):
    """On the fast lane."""


@pytest.fixture(autouse=True)
def installed(use_jobs):
    use_jobs(close_day, fast)


def test_a_run_is_told_to_the_letter(database, ledger):
    run_id = ledger.request(
        "close-day",
        key="é\x1b",
        state="succeeded",
        attempt=1,
        worker="host:7",
        queued_at=NOW,
        started_at=NOW,
        finished_at=NOW + timedelta(milliseconds=1500),
        result=json.dumps({"closed": 2**70, "rate": 0.5}),
    )

    with database.connect() as connection:
        connection.exec_driver_sql("SET TIME ZONE 'UTC'")
        found = listing.newest(connection, loading.current(), Selection(job="close-day"))

    assert json.dumps(jsonable(found), ensure_ascii=False) == (
        f'[{{"id": {run_id}, "job": "close-day", "key": "é\\u001b", "slot": null, "state": "succeeded", '
        '"reason": null, "attempt": 1, "queued_at": "2026-01-15T00:00:00+00:00", '
        '"started_at": "2026-01-15T00:00:00+00:00", "finished_at": "2026-01-15T00:00:01.500000+00:00", '
        '"result": {"rate": 0.5, "closed": 1180591620717411303424}, "error": null, "worker": "host:7", '
        '"progress": null, "cancelled": null}]'
    )


def test_runs_of_an_unknown_job_are_refused(database):
    with database.connect() as connection, pytest.raises(UnknownJob, match="did you mean 'close-day'"):
        listing.newest(connection, loading.current(), Selection(job="close-dya"))


def test_a_job_is_told_with_its_slots_in_its_own_zone_and_its_pauses_only_if_they_are_known():
    told, on_fast_lane = jobs.listed(loading.current(), None, NOW)

    assert told.next_slots[:2] == ["2026-01-16T03:00:00+05:30", "2026-01-17T03:00:00+05:30"]
    assert (told.soft_limit_seconds, told.pauses, on_fast_lane.ledger) == (90.0, None, False)
    assert [each.pauses for each in jobs.listed(loading.current(), [], NOW)] == [[], []]


def test_a_request_is_in_the_audit_by_the_names_of_its_arguments(database, ledger):
    requested = requests.request(database, loading.current(), "close-day", ANN, args={"region": "hidden"})

    assert ledger.run(requested.run_id).args == {"region": "hidden"}
    (entry,) = ledger.rows("SELECT * FROM rota_audit")
    assert (entry.via, entry.action, entry.details) == (
        "http", "run", {"run": requested.run_id, "arguments": ["region"]},
    )  # fmt: skip


def test_a_request_to_the_fast_lane_is_refused(database):
    with pytest.raises(BadArguments, match="on the fast lane"):
        requests.request(database, loading.current(), "fast", ANN)


def test_following_a_run_shows_each_look_and_warns_once_that_nobody_works(database, ledger):
    run_id, looks, warnings = ledger.request("close-day", queue="billing"), [], []

    row = requests.follow(database, run_id, 1.5, show=looks.append, warn=warnings.append)

    assert row.state == "queued"
    assert {look.id for look in looks} == {run_id}
    assert warnings == ["no worker is alive for queue 'billing'; waiting for one to start"]


def test_following_a_run_that_is_gone_is_refused(database):
    with pytest.raises(SelectionError, match="run 1 is no longer in the ledger"):
        requests.follow(database, 1, None, show=lambda _run: None, warn=lambda _said: None)


def test_a_difference_is_harmful_if_something_waits_for_what_is_not_here(database, ledger):
    with database.connect() as connection:
        first = releases.compare(connection, loading.current())
        ledger.request("retired")
        second = releases.compare(connection, loading.current())

    assert (first.is_first, first.is_harmless) == (True, True)
    assert (second.left_behind, second.is_harmless) == ({"retired": {"queued": 1}}, False)
