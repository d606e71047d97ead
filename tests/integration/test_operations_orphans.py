"""Orphans, without a command line."""

import pytest

from core import job
from core.errors import PluginError, SelectionError, UnknownJob
from core.ledger import orphans as rows
from core.ledger.audit import Actor
from core.operations import orphans
from core.plugins import loading

ANN = Actor("ann", via="http")


@job("close-day", queue="billing")
def close_day(run):
    pass


@job("open-day")
def open_day(run):
    pass


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(close_day, open_day)


def test_batches_of_an_adoption_have_one_entry_in_the_audit_between_them(database, ledger):
    ledger.do(
        "INSERT INTO rota_runs (job, queue, state, former_state, finished_at) "
        "SELECT 'close-day', 'billing', 'orphaned', 'queued', now() FROM generate_series(1, :count)",
        count=rows.BATCH + 1,
    )

    assert orphans.adopt(database, close_day, ANN) == rows.BATCH + 1

    (entry,) = ledger.rows("SELECT * FROM rota_audit")
    assert (entry.actor, entry.via, entry.action, entry.target) == ("ann", "http", "orphans adopt", "close-day")
    assert entry.details == {"runs": rows.BATCH + 1}


def test_an_adoption_of_nothing_is_not_in_the_audit(database, ledger):
    assert orphans.adopt(database, close_day, ANN) == 0
    assert ledger.rows("SELECT * FROM rota_audit") == []


def test_orphans_tell_what_they_were(database, ledger):
    run_id = ledger.request("close-day", state="orphaned", reason="uninstalled", former_state="dead", finished_at="now")

    with database.connect() as connection:
        found = orphans.found(connection, loading.current(), job="close-day")

    assert [(count.job, count.was, count.reason, count.runs) for count in found.counts] == [
        ("close-day", "dead", "uninstalled", 1)
    ]
    assert [(run.id, run.former_state) for run in found.runs] == [(run_id, "dead")]


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        ({"job": "close-dya", "plugin": None}, UnknownJob, "did you mean 'close-day'"),
        ({"job": None, "plugin": "test"}, PluginError, "did you mean 'tests'"),
        ({"job": "close-day", "plugin": None}, SelectionError, "no live process has close-day"),
    ],
)
def test_what_cannot_be_adopted_is_refused(database, start_process, wanted, error, said):
    start_process(jobs=[open_day])

    with database.connect() as connection, pytest.raises(error, match=said):
        orphans.adoptable(connection, loading.current(), **wanted)
