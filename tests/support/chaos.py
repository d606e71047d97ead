"""The jobs of the crash tests, as a plugin. ``install()`` writes the plugin into a folder, as pip would.

Each job writes its effect to a table in its own transaction, so that there is one effect for each commit. Each job also
pushes its start to a Redis list, where a test waits for it.
"""

import logging
import os
import re
import shutil
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import pendulum
import redis
from sqlalchemy import text

from core import Attempt, Keyed, Limit, Run, RunMiddleware, every, hookimpl, job, send

EFFECTS = """
    CREATE TABLE effects (
        id bigserial PRIMARY KEY, job text NOT NULL, run_id bigint NOT NULL, slot timestamptz, attempt int NOT NULL,
        pid int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE TABLE shared_row (touched_by bigint);
    INSERT INTO shared_row DEFAULT VALUES;
"""
INSERT = text("INSERT INTO effects (job, run_id, slot, attempt, pid) VALUES (:job, :run, :slot, :attempt, :pid)")
#: The list of starts. An entry is "job run attempt pid".
STARTED = "chaos:started"
#: The prefix of a list. A waiting job goes on when the list with its run's id has an entry.
GO_ON = "chaos:go-on:"

#: A file with the number of seconds by which this process's clock is wrong. It may change while the process runs.
CLOCK = os.environ.get("CHAOS_CLOCK")


def set_wrong(clock: Path) -> None:
    """Shift this process's clock, also for periodiq, by the number of seconds in ``clock``."""
    true_time, true_now = time.time, pendulum.now

    def seconds() -> float:
        return float(clock.read_text())

    time.time = lambda: true_time() + seconds()
    pendulum.now = lambda *zone: true_now(*zone).add(seconds=seconds())


if CLOCK:
    set_wrong(Path(CLOCK))

_client = redis.Redis.from_url(os.environ.get("REDIS_URL") or "redis://127.0.0.1:1", socket_timeout=None)


def tell(run: Run) -> None:
    """Tell the test that this attempt has begun. If Redis is away, write a line to the log instead."""
    try:
        _client.rpush(STARTED, f"{run.job} {run.id} {run.attempt} {os.getpid()}")
    except redis.ConnectionError:
        run.log.info("chaos.not_told")


def effect(run: Run) -> None:
    """Write an effect in this run's transaction."""
    values = {"job": run.job, "run": run.id, "slot": run.slot, "attempt": run.attempt, "pid": os.getpid()}
    run.session.execute(INSERT, values)


@job(
    "tick",
    queue="chaos",
    schedule=every(seconds=1),
    overlap="allow",
    misfire="all",
    retry_delay=timedelta(seconds=1),
)
def tick(run: Run) -> None:
    """Have a slot every second."""
    effect(run)


@job(
    "poll",
    queue="chaos",
    keyed=Keyed(least=timedelta(seconds=1), default=every(seconds=1)),
    retry_delay=timedelta(seconds=1),
)
def poll(run: Run) -> None:
    """Write an effect for a key with a schedule made at run time."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.05)"))


@job("bill", queue="chaos", overlap="wait", retry_delay=timedelta(seconds=1))
def bill(run: Run) -> None:
    """Write an effect. Runs of one customer do not overlap."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.01)"))


#: At most this many runs of ``narrow`` may be at work at the same time.
NARROW = 2
#: A lock that each run of ``narrow`` holds while it works. The lock ends with the connection, and so with the process.
AT_WORK = text("SELECT pg_advisory_lock(7777, :run)")
COUNT_AT_WORK = text("""
    SELECT count(*) FROM pg_locks JOIN pg_database AS own ON own.oid = database
    WHERE datname = current_database() AND locktype = 'advisory' AND classid = 7777 AND granted
""")
LEFT = text("SELECT pg_advisory_unlock(7777, :run)")


@job("narrow", queue="chaos", limits=[Limit("narrow", at_once=NARROW)], max_retries=0)
def narrow(run: Run) -> None:
    """Fail if more runs than allowed are at work."""
    run.session.execute(AT_WORK, {"run": run.id})
    tell(run)
    time.sleep(0.1)
    count = run.session.execute(COUNT_AT_WORK).scalar_one()
    run.session.execute(LEFT, {"run": run.id})
    if count > NARROW:
        raise RuntimeError(f"{count} runs were at work")
    effect(run)


@job("failing-slot", queue="chaos", schedule=every(seconds=2), max_retries=3, retry_delay=timedelta(seconds=2))
def failing_slot(run: Run) -> None:
    """Tell the test of each attempt, and fail."""
    tell(run)
    raise RuntimeError("on purpose")


@job("half-minute", queue="chaos", schedule=every(seconds=30))
def half_minute(run: Run) -> None:
    """Have a slot every 30 s."""
    effect(run)


@job("touch", queue="chaos", overlap="allow")
def touch(run: Run) -> None:
    """Write an effect and end."""
    effect(run)


@job("nothing", queue="chaos", overlap="allow")
def nothing(run: Run) -> None:
    """Write nothing, so that the success is recorded together with other successes."""


@job("long", queue="chaos", overlap="allow")
def long(run: Run) -> None:
    """Keep a thread for five seconds."""
    time.sleep(5)


@job("wait", queue="chaos", overlap="allow", retry_delay=timedelta(seconds=1))
def wait(run: Run) -> None:
    """Write an effect, tell the test, and wait until the test says so. The effect is committed only at the end."""
    effect(run)
    tell(run)
    _client.blpop([f"{GO_ON}{run.id}"], timeout=60)


@job("wait-narrow", queue="chaos", limits=[Limit("narrow", at_once=NARROW)])
def wait_narrow(run: Run) -> None:
    """Tell the test, and hold the limit until the test says so."""
    tell(run)
    _client.blpop([f"{GO_ON}{run.id}"], timeout=60)


@job("nap", queue="chaos", overlap="allow", max_retries=20, retry_delay=timedelta(seconds=1))
def nap(run: Run) -> None:
    """Write an effect, which takes a short time."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.02)"))


@job("lock", queue="chaos", overlap="allow", retry_delay=timedelta(seconds=1))
def lock(run: Run) -> None:
    """Do the same as ``wait``, with a lock on a row that every attempt needs."""
    run.session.execute(text("UPDATE shared_row SET touched_by = :run"), {"run": run.id})
    wait.function(run)


@job("spin", queue="chaos", overlap="allow", soft_limit=timedelta(seconds=1), max_retries=0)
def spin(run: Run) -> None:
    """Pass the soft limit in Python code."""
    tell(run)
    while True:
        time.sleep(0.01)


@job("query", queue="chaos", overlap="allow", soft_limit=timedelta(seconds=1), max_retries=0)
def query(run: Run) -> None:
    """Pass the soft limit in a statement."""
    effect(run)
    tell(run)
    run.session.execute(text("SELECT pg_sleep(120)"))


@job(
    "stubborn",
    queue="chaos",
    overlap="allow",
    soft_limit=timedelta(seconds=1),
    hard_limit=timedelta(seconds=2),
    max_retries=0,
)
def stubborn(run: Run) -> None:
    """Ignore every interruption."""
    tell(run)
    while True:
        with suppress(BaseException):
            time.sleep(1)


@job(
    "fast-stubborn",
    queue="chaos-fast",
    ledger=False,
    soft_limit=timedelta(seconds=1),
    hard_limit=timedelta(seconds=2),
)
def fast_stubborn(run: Run) -> None:
    """Ignore every interruption, on the fast lane."""
    stubborn.function(run)


@job("hog", queue="chaos", overlap="allow", soft_limit=timedelta(seconds=1), hard_limit=timedelta(seconds=2))
def hog(run: Run) -> None:
    """Call a C function that never releases the interpreter, so that no other thread of the process runs."""
    tell(run)
    re.match(r"(a+)+$", "a" * 64 + "b")


@job("send-fast", queue="chaos", overlap="allow")
def send_fast(run: Run, fail: bool = False) -> None:
    """Send a message of the fast lane if the transaction commits."""
    effect(run)
    send(run.session, "fast", args={"fail": fail})


@job("fail", queue="chaos", max_retries=1, retry_delay=timedelta(seconds=2))
def fail(run: Run) -> None:
    """Write an effect and fail."""
    effect(run)
    tell(run)
    raise RuntimeError("failed on purpose")


@job("crash", queue="chaos", retry_delay=timedelta(seconds=1))
def crash(run: Run) -> None:
    """Kill the process when the test says so."""
    tell(run)
    _client.blpop([f"{GO_ON}{run.id}"], timeout=60)
    os.kill(os.getpid(), 9)


@job("fast", queue="chaos-fast", ledger=False, max_retries=2, retry_delay=timedelta(seconds=1))
def fast(run: Run, fail: bool = False) -> None:
    """Tell the test, on the fast lane."""
    tell(run)
    if fail:
        raise RuntimeError("failed on purpose")


class Clogged(logging.Handler):
    """A log handler that hangs, like a handler of an error service that does not answer."""

    def emit(self, _record: logging.LogRecord) -> None:
        """Wait for ever, and hold the handler's lock."""
        threading.Event().wait()


@job("clog", queue="chaos", overlap="allow")
def clog(run: Run) -> None:
    """Make each thread that logs an event of Rota wait for ever."""
    tell(run)
    logging.getLogger("rota").addHandler(Clogged())


@job(
    "stubborn-clog",
    queue="chaos",
    overlap="allow",
    soft_limit=timedelta(seconds=1),
    hard_limit=timedelta(seconds=2),
    max_retries=0,
)
def stubborn_clog(run: Run) -> None:
    """Wait for ever in a log handler, and ignore every interruption."""
    clog.function(run)
    while True:
        with suppress(BaseException):
            logging.getLogger("rota").error("waiting")


@job("close-stderr", queue="chaos", overlap="allow")
def close_stderr(run: Run) -> None:
    """Close the standard error of the process."""
    sys.stderr.close()


@job("busy", queue="chaos", overlap="wait")
def busy(run: Run, how: str = "in steps") -> None:
    """Write an effect, tell the test, and be busy for two minutes in the given way."""
    effect(run)
    tell(run)
    if how == "in a statement":
        run.session.execute(text("SELECT pg_sleep(120)"))
    elif how == "in one call":
        time.sleep(120)
    elif how == "never leaving":
        while True:
            with suppress(BaseException):
                time.sleep(1)
    else:
        with suppress(BaseException) if how == "swallowing" else nullcontext():
            for _ in range(12_000):
                time.sleep(0.01)


@job("fast-wait", queue="chaos-fast", ledger=False)
def fast_wait(run: Run) -> None:
    """Tell the test, and wait on the fast lane until the test says so."""
    tell(run)
    _client.blpop([f"{GO_ON}{run.id}"], timeout=60)


#: The jobs, of any plugin, that take 30 seconds longer, separated by commas.
SLOW = frozenset(filter(None, os.environ.get("CHAOS_SLOW", "").split(",")))


class Slowness(RunMiddleware):
    """Makes the jobs in ``SLOW`` slow."""

    every_job = True

    def around(self, attempt: Attempt) -> AbstractContextManager[object]:
        """Wait before the job does its work."""
        if attempt.job.name in SLOW:
            time.sleep(30)
        return nullcontext()


class Chaos:
    """The plugin."""

    @hookimpl
    def register_middleware(self):
        return [Slowness()] if SLOW else []

    @hookimpl
    def register_jobs(self):
        return [
            tick,
            poll,
            bill,
            narrow,
            wait_narrow,
            failing_slot,
            half_minute,
            touch,
            nothing,
            nap,
            long,
            wait,
            lock,
            spin,
            query,
            stubborn,
            fast_stubborn,
            hog,
            clog,
            stubborn_clog,
            close_stderr,
            busy,
            fail,
            crash,
            send_fast,
            fast,
            fast_wait,
        ]


def install(folder: Path, jobs: str | None = None) -> Path:
    """Write this plugin into ``folder`` as pip would, for processes that have the folder in PYTHONPATH.

    ``jobs`` is a comma-separated list of the jobs to register; None for all jobs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = folder / "chaos-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rota.plugins]\nchaos = chaos_plugin:plugin\n")
    (folder / "chaos_plugin.py").write_text(ENTRY.format(jobs=jobs))
    shutil.copy(__file__, folder / "chaos_jobs.py")  # not imported from here: the processes may lack this folder
    return folder


ENTRY = """\
import chaos_jobs as chaos

from core import hookimpl

WANTED = {jobs!r}


class Wanted:
    @hookimpl
    def register_jobs(self):
        offered = chaos.Chaos().register_jobs()
        return [job for job in offered if WANTED is None or job.name in WANTED.split(",")]


    register_middleware = chaos.Chaos.register_middleware


plugin = Wanted()
"""
