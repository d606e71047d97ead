"""Jobs that fork, as a plugin beside the chaos jobs; ``tests/support/forks.py`` installs it."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import chaos_jobs as chaos  # the chaos plugin is installed in the same folder
import psycopg2
from sqlalchemy import text

from core import Run, hookimpl, job

RAISED = {"returns": None, "exits": SystemExit(3), "raises": ValueError("the child's own")}


def end_of(pid: int) -> int:
    """Wait for a child, and return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@job("fork", queue="chaos", overlap="allow", max_retries=0)
def fork(run: Run, how: str = "returns") -> dict[str, int]:
    """Let a child leave this function in the given way, and return its exit status."""
    chaos.effect(run)
    pid = os.fork()
    if pid == 0:
        if (error := RAISED[how]) is not None:
            raise error
        return {"child": 0}
    return {"status": end_of(pid)}


@job("fast-fork", queue="chaos-fast", ledger=False)
def fast_fork(run: Run) -> None:
    """Let a child leave this function, on the fast lane."""
    pid = os.fork()
    if pid:
        end_of(pid)
        chaos.tell(run)


@job("leave-child", queue="chaos", overlap="allow")
def leave_child(run: Run) -> int:
    """Leave a child running that has a session of its own."""
    chaos.effect(run)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    return pid


@job("use-session", queue="chaos", overlap="allow", max_retries=0)
def use_session(run: Run) -> list[str]:
    """Let children use the session of the run in every way. Return the error that each gets."""
    session = run.session
    session.execute(text("SELECT 1"))
    reading, writing = os.pipe()
    for attempt in (lambda: session.execute(text("SELECT 1")), session.commit, lambda: run.session, session.close):
        pid = os.fork()
        if pid == 0:
            try:
                attempt()
                os.write(writing, b"nothing\n")
            except Exception as error:  # noqa: BLE001 — its type is told
                os.write(writing, f"{type(error).__name__}\n".encode())
            os._exit(0)
        end_of(pid)
    session.execute(text("SELECT 1"))
    return os.read(reading, 4096).decode().split()


@job("own-connection", queue="chaos", overlap="allow", max_retries=0)
def own_connection(run: Run) -> int:
    """Let a child write over a connection of its own."""
    pid = os.fork()
    if pid == 0:
        with psycopg2.connect(os.environ["DATABASE_URL"]) as connection, connection.cursor() as cursor:
            values = {"job": run.job, "run": run.id, "attempt": 1, "pid": os.getpid()}
            cursor.execute(
                "INSERT INTO effects (job, run_id, attempt, pid) VALUES (%(job)s, %(run)s, %(attempt)s, %(pid)s)",
                values,
            )
        os._exit(0)
    return end_of(pid)


@job("own-engine", queue="chaos", overlap="allow", max_retries=0)
def own_engine(run: Run) -> int:
    """Let a child take a connection from its parent's engine, whose pool has an idle connection."""
    engine = run.session.get_bind()
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    pid = os.fork()
    if pid == 0:
        with engine.connect() as connection:
            os._exit(connection.execute(text("SELECT 7")).scalar_one())
    return end_of(pid)


def square(number: int) -> int:
    """Return the square, and log a line. The log has its lock, its queue and its thread in the parent."""
    logging.getLogger("forking").info("squares %s", number)
    return number * number


@job("pool", queue="chaos", overlap="allow", max_retries=0)
def pool(run: Run, method: str = "fork") -> list[int]:
    """Compute in a pool of child processes."""
    chaos.effect(run)
    with multiprocessing.get_context(method).Pool(2) as workers:
        return workers.map(square, range(8), chunksize=1)


@job("executor", queue="chaos", overlap="allow", max_retries=0)
def executor(run: Run, method: str) -> list[int]:
    """Compute in the child processes of an executor."""
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as workers:
        return list(workers.map(square, range(8)))


@job("end-children", queue="chaos", overlap="allow", max_retries=0)
def end_children(run: Run) -> list[int | None]:
    """Send each signal that ends processes to a sleeping child. Return the exit statuses."""
    ends = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.1)
        os.kill(child.pid or 0, number)
        child.join(10)
        ends.append(child.exitcode)
        child.kill()
    return ends


@job("program", queue="chaos", overlap="allow", max_retries=0)
def program(run: Run) -> list[int]:
    """Start two programs, and end one of them early. Return their exit statuses."""
    chaos.effect(run)
    done = subprocess.run([sys.executable, "-c", "import sys; sys.exit(3)"], check=False)
    sleeping = subprocess.Popen(["sleep", "60"])
    sleeping.terminate()
    return [done.returncode, sleeping.wait(10)]


@job("log-much", queue="chaos", overlap="allow")
def log_much(run: Run) -> None:
    """Log and execute statements for two seconds, so that locks are held when other runs fork."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        run.log.info("much")
        run.session.execute(text("SELECT 1"))


JOBS = [
    fork, fast_fork, leave_child, use_session, own_connection, own_engine, pool, executor, end_children, program,
    log_much,
]  # fmt: skip


class Forking:
    """The plugin."""

    @hookimpl
    def register_jobs(self):
        return JOBS


plugin = Forking()
