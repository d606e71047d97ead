"""A database role without rights: each error says which right to grant. No run is lost, and work continues after the
grant.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, inspect, make_url, text

from core import database as databases
from core import job
from core.cli import main
from core.ledger.models import State
from core.ledger.processes import Identity
from core.plugins import loading
from core.schema import grants as rights
from core.testing import Member, RunJob, create_database, drop_database, registered
from core.worker import heartbeat as heartbeats
from core.worker.executor import Executor
from core.worker.heartbeat import Heartbeat
from core.worker.membership import process_name
from tests.support.emitted import emitted
from tests.support.eventually import eventually

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


@job("read-coupons", retry_delay=timedelta(0))
def read_coupons(run):
    """Read a table of a plugin."""
    return {"coupons": run.session.execute(text("SELECT count(*) FROM expiry_coupons")).scalar_one()}


@pytest.fixture
def role(database: Engine) -> Iterator[str]:
    """Yield a role that may only connect. Its name must be quoted."""
    name = f"No-body {uuid.uuid4().hex[:8]}"
    do(database, f'CREATE ROLE "{name}" LOGIN')
    yield name
    do(database, f'DROP OWNED BY "{name}"', f'DROP ROLE "{name}"')


@pytest.fixture
def engine(database: Engine, role: str) -> Iterator[Engine]:
    """Yield an engine of that role on the test's own database."""
    engine = databases.connect(url_of(role, database))
    yield engine
    databases.dispose(engine)


@pytest.fixture
def rota(database: Engine, role: str, monkeypatch, tmp_path) -> Callable[..., Result]:
    """Return a function that runs commands as that role."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url_of(role, database))
    return lambda *words: CliRunner().invoke(main, words, catch_exceptions=False)


def url_of(role: str, engine: Engine) -> str:
    return engine.url.set(username=role).render_as_string(hide_password=False)


def do(engine: Engine, *statements: str) -> None:
    with databases.autocommit(engine) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def lacking(engine: Engine) -> list[rights.Lack]:
    with engine.connect() as connection:
        return list(rights.lacking(connection, loading.current()))


def grant_the_ledger(database: Engine, engine: Engine) -> None:
    """Grant all rights that the role lacks on Rota's own tables, and none on those of a plugin."""
    do(database, *(lack.remedy for lack in lacking(engine) if lack.owner == "core"))


LOOKING = [
    ("runs",),
    ("pauses",),
    ("audit",),
    ("orphans",),
    ("diff",),
    ("why", "prune-runs", "--at", "03:17"),
    ("db", "status"),
]


@pytest.mark.parametrize(
    ("words", "rights"),
    [
        *((words, "SELECT") for words in LOOKING),
        (("run", "prune-runs"), "SELECT, INSERT, UPDATE, DELETE"),
        (("orphans", "adopt", "prune-runs", "--yes"), "SELECT, INSERT, UPDATE, DELETE"),
        (("db", "upgrade"), "SELECT, INSERT, UPDATE, DELETE"),
        (("db", "drop-plugin", "billing", "--yes"), "SELECT, INSERT, UPDATE, DELETE"),
    ],
    ids=str,
)
def test_every_command_says_what_to_grant_and_no_more(rota, words, rights):
    done = rota(*words)

    assert done.exit_code == 1
    assert re.search(
        r"^rota: PostgreSQL refused: permission denied for table (rota_\w+); grant the role of DATABASE_URL "
        rf"{rights} on table \1$",
        done.stderr,
    )


@pytest.mark.parametrize("words", [*LOOKING, ("jobs",), ("plugins",), ("check", "--for", "looking")], ids=" ".join)
def test_every_looking_command_works_with_what_check_grants_for_looking(rota, database, words):
    checks = json.loads(rota("check", "--for", "looking", "--json").stdout)["checks"]
    grants = [check["advice"] for check in checks if check["outcome"] == "wrong" and check["name"].startswith("rights")]
    assert all(re.match(r"GRANT SELECT ON TABLE rota_", grant) for grant in grants)
    do(database, *grants)

    done = rota(*words)

    assert (done.stderr, done.exit_code) == ("", 1 if words[0] == "why" else 0)


@pytest.mark.parametrize("command", ["retry", "drop"])
def test_a_dry_run_only_looks(rota, database, role, ledger, command):
    run_id = ledger.request("prune-runs", state="dead", reason="retries", finished_at="now")
    do(database, f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role}"')

    done = rota(command, str(run_id), "--dry-run")

    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith(f"would {command} 1 run; nothing was changed\n")


def test_check_tells_a_role_that_looks_what_working_takes_and_is_wrong_only_where_that_was_asked(rota, database, role):
    do(database, f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role}"')

    working, looking = rota("check"), rota("check", "--for", "looking")

    assert (working.exit_code, looking.exit_code) == (1, 0)
    lacks = f'rights on tables of core: "{role}" lacks INSERT, UPDATE, DELETE for working'
    assert f"no  {lacks}" in working.stdout
    assert f"--  {lacks}" in looking.stdout


def test_looking_is_not_stopped_by_what_only_workers_need(rota, database, role, monkeypatch):
    do(database, f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role}"')
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    done = rota("check", "--for", "looking")

    assert (done.exit_code, "--  Redis: " in done.stdout) == (0, True)


@pytest.fixture
def moved(database) -> Iterator[str]:
    """Move the ledger to a schema whose name must be quoted, and which is on no search_path."""
    tables = [table for table in inspect(database).get_table_names() if table.startswith("rota_")]
    do(database, 'CREATE SCHEMA "App Data"', *(f'ALTER TABLE {table} SET SCHEMA "App Data"' for table in tables))
    yield "App Data"
    do(database, *(f'ALTER TABLE "App Data".{table} SET SCHEMA public' for table in tables), 'DROP SCHEMA "App Data"')


@pytest.mark.parametrize("words", [("runs",), ("db", "status"), ("run", "prune-runs")], ids=" ".join)
def test_a_ledger_in_a_schema_without_usage_is_not_told_as_not_migrated(rota, role, moved, words):
    done = rota(*words)

    remedy = f'GRANT USAGE ON SCHEMA "App Data" TO "{role}"'
    told = f'rota: the tables are in the schema "App Data", on which "{role}" lacks USAGE: {remedy}\n'
    assert (done.exit_code, done.stderr) == (1, told)


@pytest.mark.parametrize("words", [("runs",), ("db", "status"), ("run", "prune-runs")], ids=" ".join)
def test_a_ledger_that_the_search_path_lacks_is_not_told_as_not_migrated(rota, role, database, moved, words):
    do(database, f'GRANT USAGE ON SCHEMA "App Data" TO "{role}"')

    done = rota(*words)

    assert done.exit_code == 1
    assert done.stderr.startswith('rota: the tables are in the schema "App Data", and the search_path of ')
    assert f'ALTER ROLE "{role}" SET search_path = "App Data"' in done.stderr


def test_check_names_the_schema_and_what_it_advises_leads_to_the_tables(rota, role, database, moved):
    for _ in range(2):
        checks = json.loads(rota("check", "--for", "looking", "--json").stdout)["checks"]
        (wrong,) = [check for check in checks if check["outcome"] == "wrong"]
        assert wrong["name"] == "schema"
        do(database, wrong["advice"].partition(", or ")[0])

    names = [check["name"] for check in json.loads(rota("check", "--json").stdout)["checks"]]
    assert "rights on tables of core" in names
    assert "schema" not in names


def test_a_schema_that_needs_quotes_is_as_good_as_any(rota, database, moved, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", database.url.render_as_string(hide_password=False))
    advised = re.search(r"options=(\S+);", rota("runs").stderr)[1]
    url = database.url.update_query_dict({"options": f"{unquote(advised)},public"})
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))

    done = rota("check")

    assert (done.stdout.count("no  "), done.exit_code) == (0, 0)
    assert rota("runs").exit_code == 0


def test_an_upgrade_of_an_empty_database_says_what_to_grant_and_leaves_nothing(rota, role, database, monkeypatch):
    url = create_database(str(make_url(str(database.url))), f"empty_{uuid.uuid4().hex}")
    monkeypatch.setenv("DATABASE_URL", make_url(url).set(username=role).render_as_string(hide_password=False))
    try:
        done = rota("db", "upgrade")
        owner = databases.connect(url)
        assert inspect(owner).get_table_names() == []
        databases.dispose(owner)
    finally:
        drop_database(url, str(make_url(url).database))

    assert done.exit_code == 1
    assert "plugin 'core': its migration failed and was rolled back: permission denied for schema public; grant" in (
        done.stderr
    )


def test_check_tells_all_that_is_lacking_as_the_grants_that_mend_it(rota, database):
    wrong = [check for check in json.loads(rota("check", "--json").stdout)["checks"] if check["outcome"] == "wrong"]
    grants = [check["advice"] for check in wrong if check["name"].startswith("rights on ")]
    assert {check["name"] for check in wrong} >= {
        "rights on tables of core",
        "rights on tables of expiry",
        "PostgreSQL",
    }

    do(database, *grants)

    assert rota("check").exit_code == 0
    assert rota("run", "prune-runs").exit_code == 0


def test_the_grants_of_the_documentation_are_all_that_is_needed_now_and_after_an_upgrade(database, engine, role):
    (block,) = re.findall(r"```sql\n(.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    do(database, *block.replace("rota_app", f'"{role}"').split(";\n")[:-1])
    assert lacking(engine) == []

    do(database, "CREATE TABLE expiry_later (id serial)")
    assert lacking(engine) == []


def test_an_identity_column_needs_no_right_of_its_own_and_a_serial_does(database, engine, role):
    do(database, *(lack.remedy for lack in lacking(engine)))
    do(
        database,
        "CREATE TABLE expiry_later (id bigint GENERATED ALWAYS AS IDENTITY, old serial)",
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON expiry_later TO "{role}"',
    )

    (lack,) = lacking(engine)

    assert (lack.owner, lack.kind, lack.names) == ("expiry", "SEQUENCE", ("expiry_later_old_seq",))


def test_a_run_without_rights_on_its_plugins_tables_is_retried_and_says_what_to_grant(database, engine, role):
    grant_the_ledger(database, engine)
    with registered(engine) as process_id:
        run_job = RunJob(Executor(engine, Member(process_id), process_name()))
        run = run_job(read_coupons)

        assert (run.state, run.reason) == (State.RETRYING, "error")
        assert "permission denied for table expiry_coupons; grant the role of DATABASE_URL SELECT" in run.error

        do(database, *(lack.remedy for lack in lacking(engine)))
        run_job.executor.execute(read_coupons, run.id)
        assert (run_job.row(run.id).state, run_job.row(run.id).result) == (State.SUCCEEDED, {"coupons": 0})


def test_a_right_that_is_taken_away_under_a_run_leaves_it_to_be_recorded_once_it_is_back(database, engine, role):
    """The lease lives as long as its process. So a failure that could not be recorded must be recorded later."""
    grant_the_ledger(database, engine)
    asked = []

    @job("revoke", retry_delay=timedelta(0))
    def revoke(run):
        do(database, f'REVOKE UPDATE ON rota_runs FROM "{role}"')
        raise RuntimeError("failed on purpose")

    with registered(engine) as process_id:

        class Granting(Member):
            @property
            def process_id(self) -> int:
                asked.append(process_id)
                if len(asked) == 3:  # for the claim, for the record of the failure, and for the second try to record it
                    do(database, f'GRANT UPDATE ON rota_runs TO "{role}"')
                return process_id

            @process_id.setter
            def process_id(self, _: int) -> None: ...

        run = RunJob(Executor(engine, Granting(process_id), process_name()))(revoke)

    assert (run.state, run.reason, run.attempt) == (State.RETRYING, "error", 1)
    assert len(asked) == 3


def test_a_process_without_rights_says_once_what_to_grant_and_registers_when_it_is_granted(
    database, engine, monkeypatch, caplog
):
    monkeypatch.setattr(heartbeats, "REGISTER_AGAIN_SECONDS", 0.05)
    identity = Identity("worker", "test:1", "rota:rights")
    heartbeat = Heartbeat(engine, identity, every_seconds=0.05, lease=timedelta(seconds=15))
    heartbeat.start()
    try:
        eventually(lambda: "process.not_registered" in caplog.text, within=10)
        grant_the_ledger(database, engine)
        assert heartbeat.registered.wait(10)
    finally:
        heartbeat.stop()

    (said,) = emitted(caplog, "process.not_registered")
    assert re.fullmatch(r"the role lacks rights: GRANT .+ ON SEQUENCE .+; GRANT .+ ON TABLE .+", said.error)
    assert all(name in said.error for name in ("rota_runs", "rota_processes", "rota_releases"))
