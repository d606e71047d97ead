"""A database role without rights: each answer says what to grant, nothing is lost, and once granted all goes on."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

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
from tests.support.eventually import eventually

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


@job("read-coupons", retry_delay=timedelta(0))
def read_coupons(run):
    """Reads a table of a plugin."""
    return {"coupons": run.session.execute(text("SELECT count(*) FROM expiry_coupons")).scalar_one()}


@pytest.fixture
def role(database: Engine) -> Iterator[str]:
    """A role that may connect, and nothing else; a word that needs quoting."""
    name = f"No-body {uuid.uuid4().hex[:8]}"
    do(database, f'CREATE ROLE "{name}" LOGIN')
    yield name
    do(database, f'DROP OWNED BY "{name}"', f'DROP ROLE "{name}"')


@pytest.fixture
def engine(database: Engine, role: str) -> Iterator[Engine]:
    """An engine of that role on the test's own database."""
    engine = databases.connect(url_of(role, database))
    yield engine
    databases.dispose(engine)


@pytest.fixture
def rota(database: Engine, role: str, monkeypatch, tmp_path) -> Callable[..., Result]:
    """Runs commands as that role."""
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
    """All that the role lacks on Rota's own tables, and nothing on those of a plugin."""
    do(database, *(lack.remedy for lack in lacking(engine) if lack.owner == "core"))


@pytest.mark.parametrize(
    "words",
    [
        ("runs",),
        ("orphans",),
        ("diff",),
        ("run", "prune-runs"),
        ("why", "prune-runs", "--at", "03:17"),
        ("orphans", "adopt", "prune-runs", "--yes"),
        ("db", "upgrade"),
        ("db", "status"),
        ("db", "drop-plugin", "billing", "--yes"),
    ],
    ids=" ".join,
)
def test_every_command_says_what_to_grant(rota, words):
    done = rota(*words)

    assert done.exit_code == 1
    assert re.search(
        r"^rota: PostgreSQL refused: permission denied for table (rota_\w+); grant the role of DATABASE_URL "
        r"SELECT, INSERT, UPDATE, DELETE on table \1$",
        done.stderr,
    )


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
    assert (
        "plugin 'core': its migration failed, nothing of it was kept: permission denied for schema public; grant"
        in (done.stderr)
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
    """The lease lives as long as the process does, so a failure that could not be recorded must not be let go."""
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
                if len(asked) == 3:  # for the claim, to record the failure, and to record it again
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

    (said,) = {record.getMessage() for record in caplog.records if "not_registered" in record.getMessage()}
    assert re.search(r"permission denied for sequence \w+; grant the role of DATABASE_URL USAGE on sequence", said)
