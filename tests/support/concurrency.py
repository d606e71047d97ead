"""Jobs that use threads, processes and asyncio, as a plugin beside the chaos jobs; ``forks.py`` installs it."""

import asyncio
import multiprocessing
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from functools import partial

import structlog

from core import JobDefaults, Run, hookimpl

job = JobDefaults(queue="chaos", overlap="allow", max_retries=0)
#: A job with limits, which a test lets the job pass.
limited = partial(job, soft_limit=timedelta(seconds=1), hard_limit=timedelta(seconds=4))
forking = multiprocessing.get_context("fork")
SOCKETS = "ls -l /proc/self/fd | grep -c socket"
log = structlog.get_logger("concurrency")


@job("thread-pool")
def thread_pool(run: Run) -> list[int]:
    """Compute in threads."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(abs, range(-3, 1)))


@job("log-in-threads")
def log_in_threads(run: Run) -> None:
    """Log in two threads: one without the context of the run, and one with it."""
    for target in (partial(log.info, "without"), partial(copy_context().run, log.info, "within")):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()


@limited("join-child")
def join_child(run: Run) -> None:
    """Wait for a child in one long call."""
    child = forking.Process(target=time.sleep, args=(20,), daemon=True)
    child.start()
    child.join()


@limited("join-child-in-turns")
def join_child_in_turns(run: Run) -> None:
    """Wait for a child in short calls."""
    child = forking.Process(target=time.sleep, args=(20,), daemon=True)
    child.start()
    try:
        while child.is_alive():
            child.join(0.1)
    finally:
        child.kill()


@job("leave-process")
def leave_process(run: Run, seconds: float, daemon: bool) -> int:
    """Leave a process of ``multiprocessing`` running."""
    child = forking.Process(target=time.sleep, args=(seconds,), daemon=daemon)
    child.start()
    return child.pid or 0


@job("start-programs")
def start_programs(run: Run) -> list[int]:
    """Start programs. Return the number of sockets that one has, and the status of one that gets SIGINT and then
    SIGTERM.
    """
    sockets = subprocess.run(["sh", "-c", SOCKETS], capture_output=True, text=True, check=False)
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        time.sleep(0.2)
        sleeping.send_signal(signal.SIGINT)
        time.sleep(0.2)
        sleeping.terminate()
    return [int(sockets.stdout), sleeping.returncode]


@job("coroutines")
def coroutines(run: Run) -> list[int]:
    """Run coroutines together, and return their results."""

    async def square(number: int) -> int:
        await asyncio.sleep(0.01)
        log.info("in a task")
        return number * number

    async def squares() -> list[int]:
        return await asyncio.gather(*(square(number) for number in range(4)))

    return asyncio.run(squares())


@limited("await-in-turns")
def await_in_turns(run: Run) -> None:
    """Run an event loop that is never idle for long."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.05)

    asyncio.run(tick())


@limited("await-for-ever")
def await_for_ever(run: Run) -> None:
    """Run an event loop that waits for an hour."""
    asyncio.run(asyncio.sleep(3600))


class Concurrency:
    """The plugin."""

    @hookimpl
    def register_jobs(self):
        return [
            thread_pool,
            log_in_threads,
            join_child,
            join_child_in_turns,
            leave_process,
            start_programs,
            coroutines,
            await_in_turns,
            await_for_ever,
        ]


plugin = Concurrency()
