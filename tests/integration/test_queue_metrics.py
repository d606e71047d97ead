"""How many runs wait in each queue, and for how long the oldest has waited, as metrics of the leading dispatcher."""

import pytest

from core import database as databases
from core import job
from core.dispatcher import overdue_alarm
from core.observability import metrics
from core.testing import registry_of


@job("work", queue="mail")
def work(run):
    """Work."""


@job("other", queue="idle")
def other(run):
    """Work."""


@pytest.fixture
def measured(database, monkeypatch):
    """Measures, and returns the runs that wait and the seconds, by queue."""
    seen = []
    monkeypatch.setattr(metrics, "queues", lambda *given: seen.append(given))

    def measured(held=()):
        with databases.autocommit(database) as connection:
            overdue_alarm.Watch(registry_of(work, other)).look(connection, held)
        return seen[-1]

    return measured


def waits(ledger, seconds, job="work", sent="NULL", state="queued"):
    """Insert a run that came due so long ago."""
    run = ledger.request(job, queue="mail")
    ledger.do(
        f"UPDATE rota_runs SET due_at = clock_timestamp() - make_interval(secs => {seconds}), sent_at = {sent},"
        f" state = '{state}' WHERE id = :id",
        id=run,
    )


def test_waiting_runs_are_counted_and_the_oldest_is_measured_whether_it_was_sent_or_not(ledger, measured):
    assert measured() == ({"idle": 0, "mail": 0}, {"idle": 0.0, "mail": 0.0})
    waits(ledger, 60)
    waits(ledger, -60)  # in the future
    waiting, seconds = measured()
    assert waiting == {"idle": 0, "mail": 1}
    assert 60 <= seconds["mail"] < 120

    waits(ledger, 600, sent="now()")
    waits(ledger, 6000, sent="'infinity'")  # waits for another run or a limit
    waits(ledger, 60000, state="running")
    waiting, seconds = measured()
    assert waiting["mail"] == 3
    assert 600 <= seconds["mail"] < 660


def test_a_run_of_a_paused_job_waits_and_is_not_late(ledger, measured):
    waits(ledger, 600)
    waits(ledger, 600, sent="now()")

    waiting, seconds = measured(held={"work"})

    assert (waiting["mail"], seconds["mail"]) == (2, 0)
