"""``rota audit``: an entry is written in the transaction of its action, and has no personal data."""

import json
from datetime import timedelta
from typing import get_args

import pytest
from click.testing import CliRunner
from psycopg2.errors import RaiseException
from sqlalchemy.exc import DBAPIError

from core import database, every, job, settings, upkeep
from core.cli import main
from core.jobs.registry import Plugin, Registry
from core.ledger import audit
from core.ledger.audit import Actor
from core.schema import upgrade


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk"):
    pass


@pytest.fixture(autouse=True)
def installed(use_jobs, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_jobs(close_day)


@pytest.fixture
def rota():
    return lambda *words, **options: CliRunner().invoke(main, words, catch_exceptions=False, **options)


@pytest.fixture
def entries(rota):
    return lambda *words: json.loads(rota("audit", "--json", *words).stdout)


@pytest.fixture
def written(entries):
    """Return the newest entry without its id and time."""
    return lambda: {name: value for name, value in entries()[0].items() if name not in ("id", "at")}


def entry(action, target, **details):
    return {"actor": "ann", "via": "cli", "action": action, "target": target, "details": details}


class TestActions:
    def test_run_tells_names_of_arguments_and_no_values(self, rota, written, entries):
        done = rota("run", "close-day", "--key", "customer@example", "--args", '{"region": "secret"}', "--by", "ann")

        assert written() == entry("run", "close-day", run=int(done.stdout), arguments=["region"])
        assert "secret" not in str(entries())
        assert "customer" not in str(entries())

    def test_pause_and_resume(self, rota, written):
        rota("pause", "close-day", "--reason", "the bank is down", "--by", "ann")
        assert written() == entry("pause", "job:close-day", reason="the bank is down")

        rota("resume", "close-day", "--by", "ann")
        found = written()
        assert found["details"].pop("paused_at")
        assert found == entry("resume", "job:close-day", paused_by="ann")

    def test_retry_and_drop_of_ids(self, rota, written, ledger):
        run_id = ledger.request("close-day", state="dead", finished_at="now")

        rota("retry", str(run_id), "--yes", "--by", "ann")
        assert written() == entry("retry", "close-day", runs=1, ids=[run_id])
        rota("drop", str(run_id), "--yes", "--by", "ann")
        assert written() == entry("drop", "close-day", runs=1, ids=[run_id])

    def test_a_filter_is_told_but_for_the_text_of_errors(self, rota, written, ledger):
        ledger.request("close-day", state="dead", finished_at="now", error="no such user ann@example.com")

        rota("retry", "--error", "ann@example.com", "--since", "1h", "--yes", "--by", "ann")

        assert written() == entry("retry", "close-day", runs=1, since="1h", error="(a text)")

    def test_adopting_orphans(self, rota, written, ledger):
        for _ in range(2):
            ledger.request("close-day", state="orphaned", former_state="dead", finished_at="now")

        rota("orphans", "adopt", "close-day", "--yes", "--by", "ann")

        assert written() == entry("orphans adopt", "close-day", runs=2)

    def test_what_was_refused_is_not_told(self, rota, entries):
        rota("resume", "close-day"), rota("run", "close-dya"), rota("retry", "7", "--yes"), rota("pause", "nothing")

        assert entries() == []


class TestDatabases:
    """Actions on tables, in a database of their own."""

    @pytest.fixture
    def empty(self, embedded):
        from core.testing import create_database, drop_database

        postgres, _ = embedded
        url = create_database(postgres.url, "test_audit")
        engine = database.connect(url)
        yield engine
        database.dispose(engine)
        drop_database(postgres.url, "test_audit")

    def entries(self, engine):
        with engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT actor, action, target, details FROM rota_audit ORDER BY id")
            return [tuple(row) for row in rows]

    def test_an_upgrade_is_told_from_the_first_on_and_only_if_there_was_something_to_do(self, empty):
        core = Registry((Plugin("core", "rota", "", (), migrations=upkeep.register_migrations()),))

        for _ in range(2):
            list(upgrade.upgrade(empty, core, Actor("ann", "cli")))

        (told,) = self.entries(empty)
        assert told[:3] == ("ann", "db upgrade", "core")
        assert set(told[3]) == {"head"}

    def test_a_programs_upgrade_is_not(self, empty):
        list(upgrade.upgrade(empty, Registry((Plugin("core", "", "", (), migrations=upkeep.register_migrations()),))))

        assert self.entries(empty) == []

    def test_dropping_a_plugins_tables_is_told(self, empty, rota, monkeypatch):
        core = Registry((Plugin("core", "", "", (), migrations=upkeep.register_migrations()),))
        list(upgrade.upgrade(empty, core))
        with empty.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE gone_things (id int)")
            connection.exec_driver_sql("CREATE TABLE rota_migrations_gone (version_num text)")
        monkeypatch.setenv("DATABASE_URL", empty.url.render_as_string(hide_password=False))

        assert rota("db", "drop-plugin", "gone", "--yes", "--by", "ann").exit_code == 0

        assert self.entries(empty) == [
            ("ann", "db drop-plugin", "gone", {"tables": ["gone_things", "rota_migrations_gone"]})
        ]


class TestTogether:
    """Neither the action nor the entry is committed without the other."""

    @pytest.fixture
    def unwritable(self, ledger):
        """Let the audit refuse all entries."""
        ledger.do("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the audit is full'; END $$""")
        ledger.do("CREATE TRIGGER refuse BEFORE INSERT ON rota_audit FOR EACH ROW EXECUTE FUNCTION refuse()")
        yield
        ledger.do("DROP FUNCTION refuse CASCADE")

    @pytest.mark.parametrize(
        "words",
        [
            ["run", "close-day"],
            ["pause", "close-day"],
            ["retry", "--job", "close-day", "--yes"],
            ["drop", "--job", "close-day", "--yes"],
            ["orphans", "adopt", "close-day", "--yes"],
        ],
        ids=lambda words: words[0],
    )
    def test_what_cannot_be_written_down_is_not_done(self, rota, ledger, unwritable, words):
        ledger.request("close-day", state="dead", finished_at="now")
        ledger.request("close-day", state="orphaned", former_state="dead", finished_at="now")
        before = ledger.rows("SELECT * FROM rota_runs ORDER BY id")

        done = rota(*words)

        assert done.exit_code == 1
        assert "the audit is full" in done.stderr
        assert ledger.rows("SELECT * FROM rota_runs ORDER BY id") == before
        assert ledger.rows("SELECT * FROM rota_pauses") == []

    def test_a_resumption_that_cannot_be_written_down_leaves_the_pause(self, rota, ledger, request):
        rota("pause", "close-day")
        request.getfixturevalue("unwritable")

        assert rota("resume", "close-day").exit_code == 1
        assert ledger.value("SELECT until = 'infinity' FROM rota_pauses")

    def test_a_migration_that_cannot_be_written_down_is_not_made(self, ledger, unwritable, tmp_path, request):
        (tmp_path / "0001_things.py").write_text(
            "from alembic import op\nrevision = '0001'\ndown_revision = None\n"
            "def upgrade(): op.execute('CREATE TABLE things_post (id int)')\n"
        )
        things = Registry((Plugin("things", "", "", (), migrations=tmp_path),))

        with pytest.raises(DBAPIError) as raised:
            list(upgrade.upgrade(ledger.engine, things, Actor("ann", "cli")))

        assert isinstance(raised.value.orig, RaiseException)
        assert ledger.value("SELECT to_regclass('things_post')") is None


class TestListing:
    def test_the_newest_come_first_and_can_be_narrowed(self, rota, entries, ledger):
        rota("pause", "close-day", "--by", "ann")
        rota("resume", "close-day", "--by", "bob")
        ledger.do("UPDATE rota_audit SET at = at - interval '2 hours' WHERE action = 'pause'")

        assert [each["action"] for each in entries()] == ["resume", "pause"]
        assert [each["action"] for each in entries("--actor", "ann")] == ["pause"]
        assert [each["action"] for each in entries("--action", "resume")] == ["resume"]
        assert [each["action"] for each in entries("--since", "1h")] == ["resume"]
        assert [each["action"] for each in entries("--limit", "1")] == ["resume"]

    def test_people_read_a_line_for_each(self, rota):
        assert rota("audit").stdout == "the audit has no entry\n"

        rota("pause", "close-day", "--reason", "the bank is down", "--by", "ann")

        line = rota("audit").stdout.splitlines()[1]
        assert "ann" in line
        assert "job:close-day" in line
        assert "reason: the bank is down" in line

    @pytest.mark.parametrize(
        "words", [["--actor", "bob"], ["--action", "drop"], ["--since", "1h"]], ids=lambda words: words[0]
    )
    def test_a_filter_that_nothing_matches_does_not_deny_that_anything_was_done(self, rota, ledger, words):
        rota("pause", "close-day", "--by", "ann")
        ledger.do("UPDATE rota_audit SET at = at - interval '2 hours'")

        assert rota("audit", *words).stdout == "no entry matches\n"

    def test_an_action_that_there_is_not_is_wrong_usage_and_the_answer_has_those_there_are(self, rota):
        done = rota("audit", "--action", "nope")

        assert done.exit_code == 2
        assert "'nope' is not one of" in done.stderr
        assert all(repr(action) in done.stderr for action in get_args(audit.Action))

    @pytest.mark.parametrize("bad", ["yesterday", "2199-01-01"])
    def test_what_is_no_time_of_the_past_is_wrong_usage(self, rota, bad):
        assert rota("audit", "--since", bad).exit_code == 2


class TestRetention:
    def test_entries_and_pauses_that_are_over_are_kept_for_as_long_as_was_asked(self, run_job, ledger, monkeypatch):
        monkeypatch.setenv("ROTA_AUDIT_DAYS", "100")
        monkeypatch.setenv("ROTA_RETENTION_DAYS", "10")
        settings.current.cache_clear()
        for days in (99, 101):
            ledger.do(
                "INSERT INTO rota_audit (at, actor, via, action, target) "
                "VALUES (clock_timestamp() - CAST(:ago AS interval), 'ann', 'cli', 'run', 'work')",
                ago=timedelta(days=days),
            )
        for until in (timedelta(days=9), timedelta(days=11), None):
            ledger.do(
                "INSERT INTO rota_pauses (scope, paused_by, paused_at, until) VALUES "
                "('job:x', 'ann', clock_timestamp() - interval '1 year', "
                "coalesce(clock_timestamp() - CAST(:ended AS interval), 'infinity'))",
                ended=until,
            )

        row = run_job(upkeep.prune_runs)

        assert row.result == {"deleted": 0, "audit_deleted": 1}
        assert ledger.value("SELECT count(*) FROM rota_audit") == 1
        assert ledger.value("SELECT count(*) FROM rota_pauses") == 2
