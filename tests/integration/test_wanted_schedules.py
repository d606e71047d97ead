"""The schedules that a plugin wants, as its hook returns them: ``rota schedules sync``, and the daily comparison."""

from datetime import timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import Keyed, KeySchedule, every, job, schedule, sync_schedules, upkeep
from core.cli import main
from core.ledger.audit import Actor
from core.observability import metrics
from core.operations import wanted_schedules
from tests.support.emitted import emitted

MINUTE = timedelta(minutes=1)


@job("poll", queue="mail", keyed=Keyed(default=every(seconds=60)))
def poll(run, account: int = 0):
    """Poll a mailbox."""


@job("report", queue="mail", keyed=Keyed(default=every(seconds=60)))
def report(run):
    """Send a report."""


@job("clear", queue="mail")
def clear(run):
    """Do nothing. This job has no schedules."""


def accounts(session):
    """Yield the wanted schedules from a table of the plugin."""
    for row in session.execute(text("SELECT id, seconds FROM accounts ORDER BY id")):
        yield KeySchedule(str(row.id), timedelta(seconds=row.seconds), args={"account": row.id})


def broken(session):
    """Yield one key, and then read a table that does not exist."""
    yield KeySchedule("first", MINUTE)
    session.execute(text("SELECT * FROM no_such_table"))


@pytest.fixture(autouse=True)
def plugin(use_jobs, database, tmp_path, monkeypatch, ledger):
    monkeypatch.chdir(tmp_path)
    ledger.do("CREATE TABLE accounts (id bigint PRIMARY KEY, seconds int)")
    ledger.do("INSERT INTO accounts VALUES (1, 60), (2, 60), (3, 60), (4, 60)")
    return use_jobs(poll, report, clear, upkeep.check_schedules, schedules={"poll": accounts})


@pytest.fixture
def rota():
    return lambda *words: CliRunner().invoke(main, words, catch_exceptions=False)


@pytest.fixture
def specs(ledger):
    return lambda: {row.key: row.spec for row in ledger.rows("SELECT * FROM rota_key_schedules ORDER BY key")}


@pytest.fixture
def drifted(database, ledger):
    """Let one key be missing, one be different, one be unwanted, and two be right."""
    with Session(database) as session, session.begin():
        sync_schedules(session, "poll", accounts(session))
    ledger.do("INSERT INTO accounts VALUES (5, 60)")
    ledger.do("DELETE FROM accounts WHERE id = 1")
    ledger.do("UPDATE accounts SET seconds = 120 WHERE id = 2")


def test_a_sync_gives_the_keys_the_schedules_that_the_plugin_wants(rota, specs, drifted, ledger):
    done = rota("schedules", "sync", "poll", "--by", "ann")

    assert (done.exit_code, done.stdout) == (0, "poll: 1 added, 1 changed, 1 removed, 2 kept\n")
    assert specs() == {"2": "every 2m", "3": "every 1m", "4": "every 1m", "5": "every 1m"}
    (entry,) = ledger.rows("SELECT * FROM rota_audit")
    assert (entry.actor, entry.action, entry.target) == ("ann", "schedules sync", "poll")
    assert entry.details == {"added": 1, "changed": 1, "removed": 1}
    assert "0 added, 0 changed, 0 removed, 4 kept" in rota("schedules", "sync", "poll").stdout


def test_a_dry_run_shows_the_keys_and_changes_nothing(rota, specs, drifted, ledger):
    before = specs()

    done = rota("schedules", "sync", "poll", "--dry-run")

    assert done.stdout.splitlines() == [
        "would be added: 1 (5)",
        "would be changed: 1 (2)",
        "would be removed: 1 (1)",
        "would be kept: 2",
    ]
    assert specs() == before
    assert ledger.rows("SELECT * FROM rota_audit") == []


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=" ".join)
def test_a_sync_that_would_remove_most_schedules_is_refused(rota, specs, drifted, ledger, options):
    ledger.do("DELETE FROM accounts")

    refused = rota("schedules", "sync", "poll", *options)

    assert refused.exit_code == 1
    assert "wants 0 schedules and would remove 4 of 4" in refused.stderr
    assert len(specs()) == 4
    assert rota("schedules", "sync", "poll", "--most-removed", "1").exit_code == 0
    assert specs() == {}


def test_a_sync_reports_a_function_that_raises_and_changes_nothing(rota, specs, drifted, plugin, use_jobs):
    use_jobs(poll, schedules={"poll": broken})
    before = specs()

    refused = rota("schedules", "sync", "poll", "--most-removed", "1")

    assert refused.exit_code == 1
    assert "plugin 'tests'" in refused.stderr
    assert 'relation "no_such_table" does not exist; nothing was changed' in refused.stderr
    assert specs() == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("report", "plugin 'tests' has no function for 'report' in its hook register_schedules"),
        ("pol", "unknown job 'pol'; did you mean 'poll'?"),
    ],
)
def test_a_job_whose_plugin_reads_no_schedules_is_refused(rota, name, said):
    refused = rota("schedules", "sync", name)

    assert (refused.exit_code, said in refused.stderr) == (1, True)


def test_a_key_that_is_added_during_a_comparison_is_no_difference(database, specs, use_jobs):
    def slow(session):
        with Session(database) as other, other.begin():
            other.execute(text("INSERT INTO accounts VALUES (6, 60)"))
            schedule(other, "poll", key="6", every=MINUTE, args={"account": 6})
        return accounts(session)

    registry = use_jobs(poll, schedules={"poll": slow})
    with Session(database) as session, session.begin():
        sync_schedules(session, "poll", accounts(session))

    found = wanted_schedules.compare(database, registry, "poll")

    assert (found.added, found.changed, found.removed) == ([], [], [])
    assert "6" in specs()


def test_a_key_that_is_added_during_a_sync_stays(database, specs, drifted, use_jobs):
    def slow(session):
        found = list(accounts(session))
        with Session(database) as other, other.begin():
            schedule(other, "poll", key="6", every=MINUTE)
        return found

    wanted_schedules.sync(database, use_jobs(poll, schedules={"poll": slow}), "poll", Actor("ann", "cli"))

    assert specs().keys() == {"2", "3", "4", "5", "6"}


def test_a_sync_is_repeated_if_another_transaction_changes_a_key_meanwhile(database, specs, drifted, use_jobs):
    tries = []

    def slow(session):
        found = list(accounts(session))
        if not tries:
            with Session(database) as other, other.begin():
                other.execute(text("UPDATE accounts SET seconds = 300 WHERE id = 2"))
                schedule(other, "poll", key="2", every=5 * MINUTE, args={"account": 2})
        tries.append(found)
        return found

    registry = use_jobs(poll, schedules={"poll": slow})

    wanted_schedules.sync(database, registry, "poll", Actor("ann", "cli"))

    assert (len(tries), specs()["2"]) == (2, "every 5m")


@pytest.fixture
def counted(monkeypatch):
    """Return the numbers of differing schedules in the metric, by job."""
    found = {}
    monkeypatch.setattr(metrics, "schedules_differ", found.__setitem__)
    return found


def test_the_daily_comparison_reports_differences_and_changes_nothing(run_job, specs, drifted, caplog, counted):
    before = specs()

    row = run_job(upkeep.check_schedules)

    assert (row.state, row.result) == (
        "succeeded",
        {"poll": {"missing": 1, "different": 1, "unwanted": 1, "same": 2}},
    )
    (event,) = emitted(caplog, "schedule.differs")
    assert (event.job, event.missing, event.different, event.unwanted) == ("poll", 1, 1, 1)
    assert counted == {"poll": 3}
    assert specs() == before


def test_the_daily_comparison_is_silent_if_nothing_differs(run_job, rota, caplog, counted):
    rota("schedules", "sync", "poll")

    assert run_job(upkeep.check_schedules).result == {"poll": {"missing": 0, "different": 0, "unwanted": 0, "same": 4}}
    assert emitted(caplog, "schedule.differs") == []
    assert counted == {}


def test_a_function_that_raises_is_reported_and_the_other_jobs_are_compared(run_job, use_jobs, caplog, counted):
    use_jobs(poll, report, upkeep.check_schedules, schedules={"poll": broken, "report": lambda _session: [poll]})
    row = run_job(upkeep.check_schedules)

    assert row.state == "dead"
    assert [(each.job, type(each).__name__) for each in emitted(caplog, "schedule.not_compared")] == [
        ("poll", "SchedulesNotCompared"),
        ("report", "SchedulesNotCompared"),
    ]
    assert "no_such_table" in row.error
    assert "must be a KeySchedule" in row.error

    use_jobs(poll, report, upkeep.check_schedules, schedules={"poll": broken, "report": lambda _session: []})
    run_job(upkeep.check_schedules)
    use_jobs(poll, report, upkeep.check_schedules, schedules={"poll": accounts, "report": broken})
    run_job(upkeep.check_schedules)
    assert counted == {"poll": 4}


def test_what_a_function_writes_is_not_kept_by_the_comparison(run_job, database, use_jobs, ledger):
    def writes(session):
        session.execute(text("UPDATE accounts SET seconds = 999"))
        return accounts(session)

    registry = use_jobs(poll, upkeep.check_schedules, schedules={"poll": writes})

    run_job(upkeep.check_schedules)
    wanted_schedules.compare(database, registry, "poll")

    assert ledger.value("SELECT count(*) FROM accounts WHERE seconds = 999") == 0
