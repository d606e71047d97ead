"""Each plugin's migrations are applied together or not at all."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from core import database as databases
from core import upkeep
from core.errors import NotMigrated, PluginError
from core.jobs.registry import Plugin, Registry
from core.ledger import orphans, releases
from core.ledger.models import Base
from core.schema import locks
from core.schema import upgrade as migrate
from core.testing import create_database, drop_database
from tests.support.eventually import eventually
from tests.support.racing import race

CORE = Plugin("core", "rota", "", migrations=upkeep.register_migrations())
CORE_HEAD = migrate.scripts(CORE).get_current_head()

MIGRATION = """\
from alembic import op

revision = "{revision}"
down_revision = {down_revision!r}


def upgrade():
    op.execute("{statement}")
"""


@pytest.fixture
def empty(embedded):
    """Yield an engine for an empty database."""
    engine = databases.connect(create_database(embedded[0].url, "test_empty"))
    yield engine
    databases.dispose(engine)
    drop_database(embedded[0].url, "test_empty")


@pytest.fixture
def plugin(tmp_path: Path):
    """Return a function that makes a plugin with these statements as its migrations."""

    def plugin(name, *statements):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number, statement in enumerate(statements, start=1):
            values = {"revision": f"{number:04}", "down_revision": f"{number - 1:04}" if number > 1 else None}
            (folder / f"{number:04}.py").write_text(MIGRATION.format(statement=statement, **values))
        return Plugin(name, name, "1", migrations=folder)

    return plugin


def upgrade(engine, *plugins):
    return [(done.plugin, done.current, done.head) for done in migrate.upgrade(engine, Registry(plugins))]


def tables(engine):
    return set(inspect(engine).get_table_names())


def test_an_empty_database_gets_everything(empty, plugin):
    letters = plugin("letters", "CREATE TABLE letters_post (id int)")

    assert upgrade(empty, letters, CORE) == [("core", None, CORE_HEAD), ("letters", None, "0001")]

    assert tables(empty) == {
        "rota_runs", "rota_processes", "rota_releases", "rota_schedules", "rota_pauses", "rota_audit", "letters_post",
        "rota_attempts", "rota_cancels", "rota_limits", "rota_closings", "rota_departures",
        "rota_key_schedules", "rota_key_schedule_log", "rota_gaps", "rota_success_counts", "rota_run_counts",
        "rota_credentials", "rota_requested", "rota_operations", "rota_operation_items",
            "rota_migrations_core", "rota_migrations_letters",
    }  # fmt: skip


def test_a_second_upgrade_changes_nothing(empty):
    upgrade(empty, CORE)
    before = tables(empty)

    assert upgrade(empty, CORE) == [("core", CORE_HEAD, CORE_HEAD)]
    assert tables(empty) == before


def test_only_what_is_missing_is_done(empty, plugin):
    upgrade(empty, plugin("letters", "CREATE TABLE first (id int)"))
    upgrade(empty, plugin("letters", "CREATE TABLE first (id int)", "CREATE TABLE second (id int)"))

    assert {"first", "second"} <= tables(empty)


def test_upgrades_at_once_do_the_work_once(empty, plugin):
    letters = plugin("letters", "CREATE TABLE letters_post (id int)")

    done = race(*[lambda: upgrade(empty, CORE, letters)] * 6)

    assert sum(("core", None, CORE_HEAD) in each for each in done) == 1
    assert sum(("letters", None, "0001") in each for each in done) == 1


def test_a_migration_that_fails_is_named_and_leaves_nothing_of_its_plugin(empty, plugin):
    broken = plugin("letters", "CREATE TABLE letters_post (id int)", "CREATE TABLE letters_post (id int)")

    with pytest.raises(PluginError, match=r"plugin 'letters': its migration failed and was rolled back: .*exists"):
        upgrade(empty, CORE, broken)

    assert "rota_runs" in tables(empty)
    assert "letters_post" not in tables(empty)
    assert [(each.plugin, each.current) for each in migrate.status(empty, Registry((CORE, broken)))] == [
        ("core", CORE_HEAD), ("letters", None)
    ]  # fmt: skip


def test_after_a_failed_migration_is_mended_it_goes_through(empty, plugin):
    with pytest.raises(PluginError):
        upgrade(empty, plugin("letters", "CREATE TABEL letters_post (id int)"))

    upgrade(empty, plugin("letters", "CREATE TABLE letters_post (id int)"))

    assert "letters_post" in tables(empty)


def test_a_removed_plugin_leaves_the_others_histories_alone(empty, plugin):
    letters = plugin("letters", "CREATE TABLE letters_post (id int)")
    upgrade(empty, CORE, letters)

    assert upgrade(empty, CORE) == [("core", CORE_HEAD, CORE_HEAD)]
    migrate.require(empty, Registry((CORE,)))


def test_an_unmigrated_database_is_refused_naming_who_is_behind_and_what_to_do(empty, plugin):
    letters = plugin("letters", "CREATE TABLE letters_post (id int)")
    with pytest.raises(NotMigrated, match="not migrated for core, letters: run `rota db upgrade`"):
        migrate.require(empty, Registry((CORE, letters)))

    upgrade(empty, CORE)
    with pytest.raises(NotMigrated, match="not migrated for letters:"):
        migrate.require(empty, Registry((CORE, letters)))

    upgrade(empty, letters)
    migrate.require(empty, Registry((CORE, letters)))


def test_broken_plugins_are_not_migrated(empty, plugin):
    broken = Plugin("letters", "", "", migrations=plugin("letters", "CREATE TABLE x (id int)").migrations, error="no")

    assert upgrade(empty, broken) == []


def test_the_models_are_what_the_migrations_make(empty):
    upgrade(empty, CORE)

    def ours(_object, name, kind, _reflected, _compare_to):
        return kind != "table" or not name.startswith("rota_migrations_")

    with empty.connect() as connection:
        options = {"include_object": ours, "compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_the_cores_tables_can_be_taken_away_and_made_again(empty):
    upgrade(empty, CORE)
    revisions = migrate.scripts(CORE)
    table = migrate.version_table(CORE)

    def to_base(revision, _context):
        return revisions._downgrade_revs("base", revision)

    with empty.begin() as connection, EnvironmentContext(Config(), revisions, fn=to_base) as environment:
        environment.configure(connection=connection, version_table=table)
        environment.run_migrations()
    assert tables(empty) == {table}

    assert upgrade(empty, CORE) == [("core", None, CORE_HEAD)]


def test_the_first_ledger_is_brought_up_to_date_with_what_is_in_it_and_its_workers_go_on(empty, monkeypatch):
    """Workers of the old release are alive while the tables change, and still insert rows."""
    scripts = migrate.scripts(CORE)
    monkeypatch.setattr(type(scripts), "get_current_head", lambda _: "0001")
    upgrade_revs = scripts._upgrade_revs
    monkeypatch.setattr(type(scripts), "_upgrade_revs", lambda _, to, start: upgrade_revs("0001", start))
    assert upgrade(empty, CORE) == [("core", None, "0001")]
    with empty.begin() as connection:
        connection.exec_driver_sql(OLD_RUN)
        connection.exec_driver_sql(OLD_PROCESS.format(id=1))
    monkeypatch.undo()

    assert upgrade(empty, CORE) == [("core", "0001", CORE_HEAD)]

    with empty.begin() as connection:
        connection.exec_driver_sql(OLD_RUN)
        connection.exec_driver_sql(OLD_PROCESS.format(id=2))
    with databases.autocommit(empty) as connection:
        fleet = releases.fleet(connection)
        assert (fleet.is_complete, fleet.knows("work")) == (False, True)
        assert orphans.end(connection, "work", "unknown") == []
        connection.exec_driver_sql("DELETE FROM rota_processes")
        assert len(orphans.end(connection, "work", "unknown")) == 2


OLD_RUN = "INSERT INTO rota_runs (job, queue) VALUES ('work', 'default')"
OLD_PROCESS = """
    INSERT INTO rota_processes (id, kind, name, broker_id, queues, application, expires_at)
    VALUES ({id}, 'worker', 'x:1', 'x', '{{}}', 'x', clock_timestamp() + interval '1 hour')
"""


class TestLocks:
    """A migration that waits for a lock does not block other sessions for long, and names the sessions that hold the
    lock.
    """

    @pytest.fixture
    def letters(self, empty, plugin):
        """Return a plugin with a table and a migration that has not been applied."""
        upgrade(empty, CORE, plugin("letters", "CREATE TABLE letters_post (id int)"))
        return plugin(
            "letters", "CREATE TABLE letters_post (id int)", "ALTER TABLE letters_post ADD COLUMN colour text"
        )

    @pytest.fixture
    def report(self, empty, letters):
        """Yield an open transaction that has read the table."""
        other = databases.connect(empty.url.render_as_string(hide_password=False), application="monthly report")
        with other.connect() as connection:
            connection.exec_driver_sql("SELECT 'secret' FROM letters_post")
            yield connection
        other.dispose()

    def test_it_gives_up_after_a_while_and_names_who_holds_the_table(self, empty, letters, report, monkeypatch):
        monkeypatch.setattr(locks, "TRIES", 2)
        monkeypatch.setattr(locks, "LOCK_TIMEOUT_SECONDS", 0.5)
        monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.1)
        pid = report.connection.dbapi_connection.get_backend_pid()
        said = []

        with pytest.raises(locks.LocksHeld) as problem:
            list(migrate.upgrade(empty, Registry([letters]), say=said.append))

        assert f"plugin 'letters': locked by process {pid} ('monthly report' of " in str(problem.value)
        assert "idle in transaction since 20" in str(problem.value)
        assert f"SELECT pg_terminate_backend({pid})" in str(problem.value)
        assert [line.partition(" of ")[0] for line in said] == [
            f"plugin 'letters': waiting for process {pid} ('monthly report'"
        ]
        assert "secret" not in str(problem.value) + "".join(said)
        assert [done.current for done in migrate.status(empty, Registry([letters]))] == ["0001"]

    def test_it_lets_others_pass_and_goes_through_when_it_can(self, empty, letters, report, monkeypatch):
        monkeypatch.setattr(locks, "LOCK_TIMEOUT_SECONDS", 0.5)
        monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.5)
        said = []

        def read_behind_it():
            """Read the table while the migration waits for it, and then end the blocking transaction."""
            eventually(lambda: said, within=10)
            with empty.connect() as connection:
                connection.exec_driver_sql("SET statement_timeout = '5s'")
                connection.exec_driver_sql("SELECT FROM letters_post")
            report.rollback()

        race(read_behind_it, lambda: list(migrate.upgrade(empty, Registry([letters]), say=said.append)))

        assert [done.current for done in migrate.status(empty, Registry([letters]))] == ["0002"]
