"""The jobs of the crash tests, as an installed plugin: ``install()`` writes what pip would.

Every job writes its effect into a table in its own transaction, so that an effect is there once for each commit; and
tells of its start on a Redis list, where a test waits for it.
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
#: Each start is pushed here as "job run attempt pid".
STARTED = "chaos:started"
#: A job that waits goes on once something lies here under its run's id.
GO_ON = "chaos:go-on:"

#: A file with the seconds by which this process's clock is wrong; it can change while the process lives.
CLOCK = os.environ.get("CHAOS_CLOCK")


def set_wrong(clock: Path) -> None:
    """Have this process's wall clock be wrong by what stands in ``clock``: for us, and for periodiq."""
    true_time, true_now = time.time, pendulum.now

    def seconds() -> float:
        return float(clock.read_text())

    time.time = lambda: true_time() + seconds()
    pendulum.now = lambda *zone: true_now(*zone).add(seconds=seconds())


if CLOCK:
    set_wrong(Path(CLOCK))

_client = redis.Redis.from_url(os.environ.get("REDIS_URL") or "redis://127.0.0.1:1", socket_timeout=None)


def tell(run: Run) -> None:
    """Tell the test that this attempt has begun; the test may have taken Redis away."""
    try:
        _client.rpush(STARTED, f"{run.job} {run.id} {run.attempt} {os.getpid()}")
    except redis.ConnectionError:
        run.log.info("chaos.not_told")


def effect(run: Run) -> None:
    """Leave a trace in this run's transaction."""
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
    """Once a second."""
    effect(run)


@job(
    "poll",
    queue="chaos",
    keyed=Keyed(least=timedelta(seconds=1), default=every(seconds=1)),
    retry_delay=timedelta(seconds=1),
)
def poll(run: Run) -> None:
    """Leave an effect for a key, by a schedule made at run time."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.05)"))


@job("bill", queue="chaos", overlap="wait", retry_delay=timedelta(seconds=1))
def bill(run: Run) -> None:
    """Leave an effect, for one customer after another."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.01)"))


#: How many runs of the job below may be at work at the same time.
NARROW = 2
#: A lock that each of them holds while it works. It ends with its connection, and so with its process.
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
    """Tell of each attempt, and fail."""
    tell(run)
    raise RuntimeError("on purpose")


@job("half-minute", queue="chaos", schedule=every(seconds=30))
def half_minute(run: Run) -> None:
    """Every 30 s."""
    effect(run)


@job("touch", queue="chaos", overlap="allow")
def touch(run: Run) -> None:
    """Leave an effect and end."""
    effect(run)


@job("nothing", queue="chaos", overlap="allow")
def nothing(run: Run) -> None:
    """Leave nothing, so that its success is recorded with others'."""


@job("long", queue="chaos", overlap="allow")
def long(run: Run) -> None:
    """Keep a thread for five seconds."""
    time.sleep(5)


@job("wait", queue="chaos", overlap="allow", retry_delay=timedelta(seconds=1))
def wait(run: Run) -> None:
    """Leave an effect, tell the test, and end when it says so; the effect is committed at the end alone."""
    effect(run)
    tell(run)
    _client.blpop([f"{GO_ON}{run.id}"], timeout=60)


@job("wait-narrow", queue="chaos", limits=[Limit("narrow", at_once=NARROW)])
def wait_narrow(run: Run) -> None:
    """Tell the test, and hold the limit until it says so."""
    tell(run)
    _client.blpop([f"{GO_ON}{run.id}"], timeout=60)


@job("nap", queue="chaos", overlap="allow", max_retries=20, retry_delay=timedelta(seconds=1))
def nap(run: Run) -> None:
    """Leave an effect, and take a little while over it."""
    effect(run)
    run.session.execute(text("SELECT pg_sleep(0.02)"))


@job("lock", queue="chaos", overlap="allow", retry_delay=timedelta(seconds=1))
def lock(run: Run) -> None:
    """Like ``wait``, with a row locked that every attempt needs."""
    run.session.execute(text("UPDATE shared_row SET touched_by = :run"), {"run": run.id})
    wait.function(run)


@job("spin", queue="chaos", overlap="allow", soft_limit=timedelta(seconds=1), max_retries=0)
def spin(run: Run) -> None:
    """Run past its soft limit, in Python."""
    tell(run)
    while True:
        time.sleep(0.01)


@job("query", queue="chaos", overlap="allow", soft_limit=timedelta(seconds=1), max_retries=0)
def query(run: Run) -> None:
    """Be stuck in a statement."""
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
    """Call into C, and never give the interpreter back: nothing else runs in this process any more."""
    tell(run)
    re.match(r"(a+)+$", "a" * 64 + "b")


@job("send-fast", queue="chaos", overlap="allow")
def send_fast(run: Run, fail: bool = False) -> None:
    """Send a message of the fast lane, if this commits."""
    effect(run)
    send(run.session, "fast", args={"fail": fail})


@job("fail", queue="chaos", max_retries=1, retry_delay=timedelta(seconds=2))
def fail(run: Run) -> None:
    """Leave an effect and fail."""
    effect(run)
    tell(run)
    raise RuntimeError("failed on purpose")


@job("crash", queue="chaos", retry_delay=timedelta(seconds=1))
def crash(run: Run) -> None:
    """Kill the process that runs it, when the test says so."""
    tell(run)
    _client.blpop([f"{GO_ON}{run.id}"], timeout=60)
    os.kill(os.getpid(), 9)


@job("fast", queue="chaos-fast", ledger=False, max_retries=2, retry_delay=timedelta(seconds=1))
def fast(run: Run, fail: bool = False) -> None:
    """The fast lane."""
    tell(run)
    if fail:
        raise RuntimeError("failed on purpose")


class Clogged(logging.Handler):
    """A log handler, as of a service that takes errors, whose server has hung."""

    def emit(self, _record: logging.LogRecord) -> None:
        """Wait for ever, holding this handler's lock."""
        threading.Event().wait()


@job("clog", queue="chaos", overlap="allow")
def clog(run: Run) -> None:
    """From now on, each thread that logs an event of Rota waits for ever."""
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
    """Close what is not the job's."""
    sys.stderr.close()


@job("busy", queue="chaos", overlap="wait")
def busy(run: Run, how: str = "in steps") -> None:
    """Leave an effect, tell the test, and be busy for two minutes, in one of several ways."""
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
    """Tell the test, and wait on the fast lane until it says so."""
    tell(run)
    _client.blpop([f"{GO_ON}{run.id}"], timeout=60)


#: The jobs of all plugins that take half a minute, separated by commas.
SLOW = frozenset(filter(None, os.environ.get("CHAOS_SLOW", "").split(",")))


class Slowness(RunMiddleware):
    """Makes the slow jobs slow."""

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
    """Write this plugin into ``folder`` as pip would, for real processes that have it on their PYTHONPATH.

    ``jobs``: a comma-separated list of the only jobs that are wanted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = folder / "chaos-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rota.plugins]\nchaos = chaos_plugin:plugin\n")
    (folder / "chaos_plugin.py").write_text(ENTRY.format(jobs=jobs))
    shutil.copy(__file__, folder / "chaos_jobs.py")  # not imported from here: the processes may not have this folder
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
