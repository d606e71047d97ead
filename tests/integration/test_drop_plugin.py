"""``rota db drop-plugin``: drops all tables of a plugin or none, and no tables of other plugins."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import inspect

from core import job
from core.cli import confirmation, main
from core.jobs.registry import Plugin, Registry
from core.plugins import loading
from core.schema import locks, removal, upgrade
from core.testing import create_database, drop_database

ROOT = Path(__file__).parents[2]

REVISION = """
from alembic import op

revision = "0001"
down_revision = None

def upgrade():
    op.execute("CREATE TYPE billing_state AS ENUM ('open', 'paid')")
    op.execute("CREATE SEQUENCE billing_numbers")
    op.execute("CREATE FUNCTION billing_next() RETURNS bigint LANGUAGE sql RETURN nextval('billing_numbers')")
    op.execute("CREATE TABLE billing_bills (id int PRIMARY KEY, no int DEFAULT billing_next(), state billing_state)")
    op.execute("CREATE VIEW billing_unpaid AS SELECT id FROM billing_bills WHERE state = 'open'")
    op.execute("CREATE TABLE billing_lines (bill_id int REFERENCES billing_bills)")

def downgrade():
    {downgrade}
"""
DOWNGRADE = """
    op.execute("DROP VIEW billing_unpaid")
    op.execute("DROP TABLE billing_lines, billing_bills")
    op.execute("DROP FUNCTION billing_next")
    op.execute("DROP SEQUENCE billing_numbers")
    op.execute("DROP TYPE billing_state")
"""
MODULE = """
from pathlib import Path
from core import hookimpl

@hookimpl
def register_migrations():
    return Path(__file__).parent / "billing_migrations"
"""


@job("send-bill")
def send_bill(run):
    pass


@pytest.fixture
def postgres_url(template):
    """Yield the URL of a new database, since the test creates and drops tables."""
    yield create_database(template, "test_drop_plugin", template=True)
    drop_database(template, "test_drop_plugin")


@pytest.fixture
def rota(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words, **options: CliRunner().invoke(main, ["db", "drop-plugin", *words], **options)


@pytest.fixture
def registry():
    """Return the registry of this process, without the plugin billing."""
    registry = Registry(loading.load([]).plugins)
    with loading.using(registry):
        yield registry


@pytest.fixture
def billing(tmp_path, monkeypatch, database, registry):
    """Return a function that installs the plugin with its tables, and then uninstalls it, or keeps its package."""
    site = tmp_path / "site"
    folder = site / "billing_migrations"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(site)

    def install(*, is_kept, downgrade=DOWNGRADE):
        (folder / "0001_bills.py").write_text(REVISION.format(downgrade=downgrade))
        list(upgrade.upgrade(database, Registry((Plugin("billing", "", "", migrations=folder),))))
        with database.begin() as connection:
            connection.exec_driver_sql("INSERT INTO billing_bills VALUES (1), (2)")
        if is_kept:
            about = site / "billing_jobs-1.0.dist-info"
            about.mkdir()
            (about / "METADATA").write_text("Metadata-Version: 2.1\nName: billing-jobs\nVersion: 1.0\n")
            (about / "entry_points.txt").write_text("[rota.plugins]\nbilling = billing_of_a_test\n")
            (site / "billing_of_a_test.py").write_text(MODULE)

    yield install
    sys.modules.pop("billing_of_a_test", None)


def tables(engine):
    return {name for name in inspect(engine).get_table_names() if "billing" in name or name.startswith("rota_")}


def test_an_uninstalled_plugins_tables_go_by_name_and_nobody_elses(rota, billing, database):
    before = tables(database)
    billing(is_kept=False)
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE billing_archive_old (id int)")
        connection.exec_driver_sql("CREATE TABLE rota_migrations_billing_archive (version_num text)")
        connection.exec_driver_sql("CREATE TABLE billings (id int)")

    done = rota("billing", "--yes")

    assert done.exit_code == 0, done.output
    assert tables(database) - before == {"billing_archive_old", "rota_migrations_billing_archive", "billings"}
    assert before <= tables(database)
    assert "billing_bills" in done.stdout
    assert "by their names" in done.stdout


def test_they_go_from_a_schema_whose_name_needs_quotes(rota, billing, database):
    billing(is_kept=False)
    with database.begin() as connection:
        connection.exec_driver_sql('ALTER SCHEMA public RENAME TO "App Data"')
        connection.exec_driver_sql('ALTER DATABASE test_drop_plugin SET search_path = "App Data"')

    done = rota("billing", "--yes")

    left = inspect(database).get_table_names(schema="App Data")
    assert (done.exit_code, [name for name in left if "billing" in name]) == (0, [])
    assert "rota_runs" in left


def test_one_whose_tables_went_by_name_can_return(rota, billing, database):
    billing(is_kept=False)

    assert rota("billing", "--yes").exit_code == 0

    billing(is_kept=False)


@pytest.mark.parametrize("name", ["customer_service", "expiry", "mail", "maintenance"])
def test_nothing_of_ours_is_left_by_name(rota, registry, database, monkeypatch, name):
    """Functions must be dropped as well: otherwise the plugin could not be installed again."""
    plugin = Plugin(name, "", "", migrations=ROOT / "plugins" / name / "migrations")
    list(upgrade.upgrade(database, Registry((plugin,))))
    monkeypatch.setattr(removal, "importable", lambda _: None)

    done = rota(name, "--yes")

    assert done.exit_code == 0, done.output
    with database.connect() as connection:
        left = [each.name for each in connection.execute(removal.OBJECTS).all() if each.name.startswith(name)]
    assert not left
    list(upgrade.upgrade(database, Registry((plugin,))))


def test_a_disabled_plugins_tables_go_by_its_own_migrations(rota, billing, database):
    before = tables(database)
    billing(is_kept=True, downgrade=DOWNGRADE)

    done = rota("billing", "--yes")

    assert done.exit_code == 0, done.output
    assert "by downgrading its migrations" in done.stdout
    assert tables(database) == before


def test_a_migration_that_cannot_be_taken_back_changes_nothing(rota, billing, database):
    billing(is_kept=True, downgrade=DOWNGRADE + "    op.execute('SELECT 1 / 0')")
    before = tables(database)

    done = rota("billing", "--yes")

    assert done.exit_code == 1
    assert "plugin 'billing': its migration failed and was rolled back: division by zero" in done.stderr
    assert tables(database) == before


def test_a_table_that_others_refer_to_keeps_all(rota, billing, database):
    billing(is_kept=False)
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE shop (bill_id int REFERENCES billing_bills)")
    before = tables(database)

    done = rota("billing", "--yes")

    assert done.exit_code == 1
    assert "PostgreSQL refused: cannot drop" in done.stderr
    assert tables(database) == before


@pytest.mark.parametrize(("typed", "status"), [("billing", 0), ("bill", 1), ("y", 1), ("", 1)])
def test_its_name_has_to_be_typed(rota, billing, database, monkeypatch, typed, status):
    monkeypatch.setattr(confirmation, "is_answerable", lambda: True)
    billing(is_kept=False)

    assert rota("billing", input=f"{typed}\n").exit_code == status
    assert ("billing_bills" in tables(database)) == bool(status)


def test_where_nobody_can_answer_it_is_refused(rota, billing, database):
    billing(is_kept=False)

    assert "use --yes" in rota("billing").stderr
    assert "billing_bills" in tables(database)


def test_it_is_refused_while_a_live_process_has_the_plugin(rota, billing, database, start_process):
    billing(is_kept=False)
    start_process(jobs=[send_bill], plugin="billing")

    done = rota("billing", "--yes")

    assert done.exit_code == 1
    assert "worker test:1 has plugin 'billing' loaded: restart it without the plugin, or stop it" in done.stderr
    assert "billing_bills" in tables(database)


def test_it_is_refused_while_a_live_process_does_not_say_what_it_has(rota, billing, database, start_process):
    billing(is_kept=False)
    start_process()

    assert "does not say which plugins it has" in rota("billing", "--yes").stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("core", "is loaded here"),
        ("rota", "tables of that name are Rota's own"),
        ("bil%", "must be a letter, then letters"),
        ("biling", "has no tables here; did you mean 'billing'?"),
    ],
)
def test_what_is_no_plugin_that_was_taken_away_is_refused(rota, billing, database, name, problem):
    billing(is_kept=False)
    before = tables(database)

    done = rota(name, "--yes")

    assert done.exit_code == 1
    assert problem in done.stderr
    assert tables(database) == before


def test_a_plugin_that_is_loaded_here_is_refused(rota, billing, database):
    billing(is_kept=False)

    with loading.using(Registry((Plugin("billing", "", "", (send_bill,)),))):
        assert "plugin 'billing' is loaded here: uninstall it" in rota("billing", "--yes").stderr


def test_tables_that_others_hold_are_not_waited_for_without_end(rota, billing, database, monkeypatch):
    monkeypatch.setattr(locks, "TRIES", 2)
    monkeypatch.setattr(locks, "LOCK_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.1)
    billing(is_kept=False)
    with database.begin() as connection:
        connection.exec_driver_sql("SELECT FROM billing_bills")

        done = rota("billing", "--yes")

    assert done.exit_code == 1
    assert "plugin 'billing': locked by process" in done.output
    assert "billing_bills" in tables(database)
