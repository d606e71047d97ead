"""Pauses, without a command line."""

from datetime import timedelta

import pytest

from core import job
from core.errors import BadTime, PauseError, UnknownJob
from core.ledger.audit import Actor
from core.operations import pauses
from core.plugins import loading

ANN = Actor("ann", via="http")


@job("close-day", queue="billing")
def close_day(run):
    pass


@job("fast", queue="billing", ledger=False)
def fast(run):
    pass


@pytest.fixture(autouse=True)
def installed(use_jobs):
    use_jobs(close_day, fast)


@pytest.fixture
def begin(database):
    """Return a function that begins a pause."""

    def begin(scope, **how):
        with database.begin() as connection:
            return pauses.begin(connection, loading.current(), scope, ANN, **how)

    return begin


@pytest.fixture
def end(database):
    """Return a function that ends a pause."""

    def end(scope):
        with database.begin() as connection:
            return pauses.end(connection, loading.current(), scope, ANN)

    return end


def test_a_pause_is_active_in_the_audit_and_tells_what_it_does_not_hold(begin, database, ledger):
    begun = begin("queue:billing", reason="the bank is down", lasting=timedelta(hours=2))

    with database.connect() as connection:
        assert pauses.active(connection) == [begun.pause]
    assert abs(begun.pause.until - begun.pause.paused_at - timedelta(hours=2)) < timedelta(seconds=5)
    assert begun.on_fast_lane == ["fast"]
    (entry,) = ledger.rows("SELECT * FROM rota_audit")
    assert (entry.actor, entry.via, entry.action, entry.target) == ("ann", "http", "pause", "queue:billing")


def test_a_job_that_a_wider_pause_holds_cannot_be_resumed_alone(begin, end):
    begin("queue:billing")

    with pytest.raises(
        PauseError, match="the pause of queue:billing covers it: `rota resume --queue billing` ends that pause"
    ):
        end("job:close-day")


def test_ending_a_pause_tells_which_others_still_hold_the_job(begin, end):
    begin("queue:billing"), begin("job:close-day")

    assert [pause.scope for pause in end("job:close-day")] == ["queue:billing"]


@pytest.mark.parametrize(
    ("scope", "how", "error", "said"),
    [
        ("job:close-dya", {}, UnknownJob, "did you mean 'close-day'"),
        ("queue:biling", {}, PauseError, "did you mean 'billing'"),
        ("job:fast", {}, PauseError, "on the fast lane"),
        ("everything", {"until": "2001-01-01"}, BadTime, "after now"),
        ("everything", {"lasting": timedelta.max}, BadTime, "after the last date that there is"),
    ],
)
def test_what_cannot_be_paused_is_refused_and_nothing_is_written(begin, ledger, scope, how, error, said):
    with pytest.raises(error, match=said):
        begin(scope, **how)

    assert ledger.rows("SELECT * FROM rota_pauses") == ledger.rows("SELECT * FROM rota_audit") == []
