"""PgBouncer in front of PostgreSQL: Rota works in session mode, as the documentation says, and refuses the other
modes.
"""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from core import Run, job, settings
from core.database import connect, dispose
from core.embedded.accounts import pgserver_account
from core.errors import UnfitServers
from core.ledger import processes
from core.ledger.processes import Identity
from core.operations import fitness, postgres_fitness
from core.testing import LONG_LEASE, Member, RunJob
from core.worker.executor import Executor
from tests.support.eventually import eventually
from tests.support.fleet import fleet
from tests.support.servers import PGBOUNCER


@job("count", queue="counting")
def count(run: Run) -> dict[str, int]:
    """Return the number of pauses, which is 0."""
    return {"rows": run.session.execute(sa.text("SELECT count(*) FROM rota_pauses")).scalar_one()}


@pytest.fixture
def pooled(postgres_url: str) -> Iterator[Callable[..., str]]:
    """Starts PgBouncer in a pool mode, with more settings. Returns the URL of the test's database behind it."""
    with ExitStack() as stack, TemporaryDirectory(prefix="rota-pgbouncer-") as folder:
        yield lambda mode, **more: start(stack, mode, postgres_url, Path(folder), **more)


def start(stack: ExitStack, mode: str, postgres_url: str, folder: Path, **more: int) -> str:
    """Start PgBouncer, which ends with ``stack``."""
    url, port = make_url(postgres_url), free_port()
    host, server_port = url.host or url.query["host"], url.port or url.query.get("port", 5432)
    password = f" password={url.password}" if url.password else ""
    settings = "\n".join(f"{name} = {value}" for name, value in more.items())
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(f"""
[databases]
{url.database} = host={host} port={server_port} user={url.username}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
ignore_startup_parameters = extra_float_digits
{settings}
""")
    account = pgserver_account() if os.geteuid() == 0 else None
    for path in (folder, configuration) if account else ():
        os.chown(path, account.uid, account.gid)
    log = stack.enter_context((folder / "log").open("w"))
    command = [PGBOUNCER, configuration]
    as_account = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    child = stack.enter_context(subprocess.Popen(command, stderr=log, **as_account))
    stack.callback(child.terminate)
    pooled_url = url.set(query={}, host="127.0.0.1", port=port).render_as_string(hide_password=False)
    try:
        eventually(lambda: answers(pooled_url), within=20)
    except AssertionError as error:
        raise AssertionError((folder / "log").read_text()) from error
    return pooled_url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


@pytest.fixture
def behind(pooled: Callable[..., str]) -> Iterator[Callable[..., sa.Engine]]:
    """Yield an engine that connects through PgBouncer in a pool mode."""
    with ExitStack() as stack:

        def through(mode: str, **more: int) -> sa.Engine:
            engine = connect(pooled(mode, **more))
            stack.callback(dispose, engine)
            return engine

        yield through


def test_in_session_mode_a_run_is_claimed_and_committed(behind: Callable[[str], sa.Engine], use_jobs: Any) -> None:
    use_jobs(count)
    engine = behind("session")
    with engine.connect() as connection:
        own = connection.execution_options(isolation_level="AUTOCOMMIT")
        process_id = processes.register(own, Identity("worker", "test:1", "rota-test"), LONG_LEASE)

        row = RunJob(Executor(engine, Member(process_id), "test:1"))(count)

    assert (row.state, row.result) == ("succeeded", {"rows": 0})


@pytest.mark.parametrize(("mode", "is_held"), [("session", True), ("transaction", False)])
def test_only_in_session_mode_an_advisory_lock_is_its_connections(
    behind: Callable[[str], sa.Engine], mode: str, is_held: bool
) -> None:
    engine = behind(mode)
    take = sa.text("SELECT pg_try_advisory_lock(7)")
    with engine.connect() as first, engine.connect() as second:
        assert first.execute(take).scalar_one()
        first.commit()

        assert second.execute(take).scalar_one() is not is_held


@pytest.mark.parametrize("more", [{}, {"server_round_robin": 1}, {"default_pool_size": 1}], ids=str)
@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_pooler_in_transaction_mode_is_told_however_it_chooses_among_its_connections(
    behind: Callable[..., sa.Engine], more: dict[str, int], others: int
) -> None:
    """``others`` connections have used the pool before and are idle."""
    engine = behind("transaction", **more)
    with engine.connect() as connection, ExitStack() as stack:
        idle = [stack.enter_context(engine.connect()) for _ in range(others if "default_pool_size" not in more else 0)]
        for each in idle:  # all at once, so that each connection has a server process
            each.execute(postgres_fitness.BACKEND)
        for each in idle:
            each.commit()

        for _ in range(20):
            found = postgres_fitness.pooling(connection, engine)
            assert (found.outcome, found.advice) == ("wrong", postgres_fitness.SESSION_MODE)


def test_a_pooler_in_session_mode_is_fit(behind: Callable[..., sa.Engine]) -> None:
    engine = behind("session")
    with engine.connect() as connection:
        assert postgres_fitness.pooling(connection, engine).outcome == "ok"
    assert fitness.of_postgresql(engine) == []


@pytest.mark.parametrize(
    ("mode", "query", "said"),
    [
        ("transaction", "", "set pool_mode = session for this database in the pooler"),
        ("session", "?options=-cwork_mem=4MB", "add the parameter to ignore_startup_parameters of PgBouncer"),
    ],
)
def test_processes_refuse_to_start_behind_a_pooler_that_will_not_do(
    pooled: Callable[..., str], environment: None, monkeypatch: pytest.MonkeyPatch, mode: str, query: str, said: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", pooled(mode) + query)

    with pytest.raises(UnfitServers, match=said):
        fitness.refuse_unfit(settings.load())


def test_a_pooler_in_statement_mode_is_told(pooled: Callable[..., str], postgres_url: str) -> None:
    url = pooled("statement")
    engine = connect(url)

    with pytest.raises(sa.exc.OperationalError) as refused:
        engine.connect()

    told = postgres_fitness.statement_pooling(refused.value, url)
    assert told is not None
    assert (told.name, told.outcome, told.advice) == ("PostgreSQL pooling", "wrong", postgres_fitness.SESSION_MODE)
    assert postgres_fitness.statement_pooling(refused.value, postgres_url) is None
    dispose(engine)


def test_a_worker_behind_transaction_mode_ends_with_the_remedy(
    pooled: Callable[..., str], postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    with fleet(tmp_path, postgres_url, redis_url, environ={"DATABASE_URL": pooled("transaction")}) as started:
        worker = started.start("dramatiq", "core.main", "--processes", "1", "--threads", "2")

        assert worker.wait(60) == 1
        assert "PostgreSQL pooling: a pooler in transaction mode" in started.logs()
        assert postgres_fitness.SESSION_MODE in started.logs()
        assert "ready for action" not in started.logs()
