"""I4, I5: a run loses one attempt at most if connections are cut or PostgreSQL is restarted."""

import socket
import threading
from contextlib import ExitStack, closing
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import TimeoutError as PoolTimeout

from core import database as databases
from core import job
from core.embedded import EmbeddedPostgres
from core.ledger import claims, processes, runs
from core.ledger.processes import Identity
from core.plugins.loading import current
from core.schema import upgrade
from core.testing import Member, RunJob
from core.worker import outcomes
from core.worker.executor import Executor
from core.worker.heartbeat import Heartbeat
from tests.faults.proxy import Loop, Proxy
from tests.support.effects import leave
from tests.support.emitted import emitted
from tests.support.eventually import eventually
from tests.support.ledger import Ledger

PID = text("SELECT pg_backend_pid()")


def cut(ledger, pid):
    """Terminate a backend, and wait until it has ended."""
    assert ledger.value("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)


def once(function, **options):
    return job("work", **{"retry_delay": timedelta(0), **options})(function)


def test_a_connection_cut_in_mid_job_is_a_failed_attempt_that_is_tried_again(run_job, ledger):
    def function(run):
        leave(run.session, "done")
        if run.attempt == 1:
            cut(ledger, run.session.execute(PID).scalar_one())
        run.session.execute(text("SELECT 1"))

    cut_once = once(function)
    row = run_job(cut_once)
    assert (row.state, row.reason, row.failures) == ("retrying", "error", 1)
    assert ledger.effects() == []

    run_job.executor.execute(cut_once, row.id)

    assert run_job.row(row.id).state == "succeeded"
    assert ledger.effects() == ["done"]


def test_a_connection_cut_before_the_commit_of_a_checkpoint_loses_that_batch_alone(run_job, ledger):
    def function(run):
        leave(run.session, "first batch")
        run.checkpoint({"done": 1})
        leave(run.session, "second batch")
        cut(ledger, run.session.execute(PID).scalar_one())
        run.checkpoint({"done": 2})

    row = run_job(once(function))

    assert (row.state, row.progress) == ("retrying", {"done": 1})
    assert ledger.effects() == ["first batch"]


def test_a_pool_of_stale_connections_does_not_keep_a_run_from_being_claimed(run_job, database, postgres_url):
    work = once(lambda run: leave(run.session, "done"))
    run_id = run_job.request(work)
    connections = [database.connect() for _ in range(4)]
    pids = [connection.execute(PID).scalar_one() for connection in connections]
    for connection in connections:
        connection.close()
    outside = databases.connect(postgres_url)
    for pid in pids:
        cut(Ledger(outside), pid)
    outside.dispose()

    assert run_job.executor.execute(work, run_id) == "succeeded"


def test_the_kernel_gives_up_a_server_that_acknowledges_no_statement(postgres_url):
    """In a trial, a veth pair was taken down. The client noticed it after 10.0 s, and without the option not within 75
    s.
    """
    url = make_url(postgres_url)
    loop = Loop()
    proxy = Proxy(loop, lambda: f"{url.query['host']}/.s.PGSQL.{url.query['port']}").start()
    engine = databases.connect(url.set(host="127.0.0.1", port=proxy.port, query={}).render_as_string())

    with engine.connect() as connection, socket.fromfd(fileno(connection), socket.AF_INET, socket.SOCK_STREAM) as tcp:
        timeout_ms = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    engine.dispose()
    proxy.stop()
    loop.close()
    assert timeout_ms == 10_000


def fileno(connection):
    return connection.connection.driver_connection.fileno()


def test_an_outcome_that_cannot_be_recorded_at_once_is_recorded_later(run_job, ledger, monkeypatch):
    monkeypatch.setattr(outcomes, "RECORD_AGAIN_SECONDS", 0.1)

    def function(run):
        ledger.do("ALTER TABLE rota_runs RENAME TO rota_runs_away")
        threading.Timer(0.5, lambda: ledger.do("ALTER TABLE rota_runs_away RENAME TO rota_runs")).start()
        raise RuntimeError("failed on purpose")

    row = run_job(once(function, retry_delay=timedelta(minutes=5)))

    assert (row.state, row.error) == ("retrying", "RuntimeError: failed on purpose")


def test_an_outcome_that_cannot_be_recorded_is_given_up_with_the_lease(run_job, ledger, database, monkeypatch):
    monkeypatch.setattr(outcomes, "RECORD_AGAIN_SECONDS", 0.05)
    process_id = run_job.executor.membership.process_id
    answers = iter([process_id, process_id, process_id])

    class Forgetful(Member):
        process_id = property(lambda self: next(answers, None), lambda self, _: None)

    forgetful = Executor(database, Forgetful(None), "test:1")

    def away(*_):
        raise PoolTimeout("away on purpose")

    monkeypatch.setattr(runs, "fail", away)
    run_id = run_job.request(failing)

    assert forgetful.execute(failing, run_id) == "lost"
    assert run_job.row(run_id).state == "running"


@job("work")
def failing(run):
    raise RuntimeError("failed on purpose")


def test_without_a_process_nothing_is_claimed(run_job, database):
    run_id = run_job.request(failing)

    assert Executor(database, Member(None), "test:1").execute(failing, run_id) == "none"
    assert run_job.row(run_id).attempt == 0


@pytest.fixture
def own_postgres(servers_folder, tmp_path):
    """Yield a PostgreSQL of this test's own, which the test may stop and start."""
    server = EmbeddedPostgres(servers_folder / tmp_path.name)
    server.start()
    yield server
    server.stop()


def test_a_restart_of_postgresql_is_survived_between_and_during_runs(own_postgres):
    engine = databases.connect(own_postgres.url)
    list(upgrade.upgrade(engine, current()))
    with closing(engine.connect()) as one, closing(engine.connect()) as other:  # two connections that will be stale
        one.execute(PID)
        other.execute(PID)
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO rota_processes VALUES (1, 'worker', 'x', NULL, 'x', '{}', now(), 'infinity')")
        )
    run_job = RunJob(Executor(engine, Member(1), "test:1"))

    def restart(run):
        if run.attempt == 1:
            own_postgres.stop()
            own_postgres.start()
        run.session.execute(text("SELECT 1"))

    def restart_in_transaction(run):
        run.session.execute(text("SELECT 1"))
        restart(run)

    quiet = once(lambda run: None)
    run_id = run_job.request(quiet)
    own_postgres.stop()
    own_postgres.start()
    assert run_job.executor.execute(quiet, run_id) == "succeeded"

    assert run_job(once(restart)).state in {"succeeded", "retrying"}

    between = once(restart_in_transaction)
    row = run_job(between)
    assert (row.state, row.failures) == ("retrying", 1)
    assert run_job.executor.execute(between, row.id) == "succeeded"
    engine.dispose()


def test_while_postgresql_is_down_a_claim_is_refused_and_nothing_runs(own_postgres, caplog):
    engine = databases.connect(own_postgres.url)
    ran = []
    own_postgres.stop()

    assert Executor(engine, Member(1), "test:1").execute(once(lambda run: ran.append(run)), 1) == "none"

    assert ran == []
    assert emitted(caplog, "run.not_claimed")


def test_a_restart_of_postgresql_is_no_crash_of_the_processes_that_come_back(own_postgres):
    engine = databases.connect(own_postgres.url)
    list(upgrade.upgrade(engine, current()))
    identity = Identity("worker", "test:1", "rota:test")
    heartbeat = Heartbeat(engine, identity, every_seconds=0.05, lease=timedelta(seconds=15))
    heartbeat.start()
    assert heartbeat.registered.wait(10)
    before = heartbeat.process_id
    run_job = RunJob(Executor(engine, Member(before), "test:1"))
    run_id = run_job.request(failing)
    with databases.autocommit(engine) as connection:
        claims.claim(connection, run_id, job=failing.name, process_id=before, worker="test:1")

    own_postgres.stop()
    own_postgres.start()
    with databases.connect(own_postgres.url).connect() as reaper:
        assert processes.end_dead(reaper) == []
    eventually(lambda: run_job.row(run_id).state == "retrying", within=10)

    row = run_job.row(run_id)
    assert (row.crashes, row.failures, row.reason) == (0, 0, "its worker lost PostgreSQL")
    assert heartbeat.process_id != before
    heartbeat.stop()
    databases.dispose(engine)


def test_a_connection_that_comes_back_while_others_are_closed_is_closed_too(postgres_url, monkeypatch):
    engine = databases.connect(postgres_url)
    with ExitStack() as borrowed:
        late = borrowed.enter_context(databases.autocommit(engine))
        with databases.autocommit(engine) as one, databases.autocommit(engine) as other:
            pass
        for idle in (one, other):
            monkeypatch.setattr(idle, "close", lambda close=idle.close: (borrowed.close(), close()))

        databases.dispose(engine)

    assert [one.closed, other.closed, late.closed] == [True, True, True]
