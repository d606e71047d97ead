"""Workers of the peers, killed in the middle of their tasks: bare Dramatiq, and Celery.

Each is set up as in the first example of its documentation, with only the broker's address.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks.peers import environment

ROOT = Path(__file__).parents[2]
THREADS = "4"
#: Each start of a task is pushed here as "number pid".
STARTED = "recovery:started"


@dataclass(frozen=True)
class Peer:
    """How to start a worker of a peer, and how to send it tasks."""

    name: str
    #: The folder of its commands.
    commands: Callable[[], Path]
    worker: tuple[str, ...]
    #: The module that sends, as a program.
    module: str


PEERS = [
    Peer(
        "bare Dramatiq",
        lambda: Path(sys.executable).parent,
        ("dramatiq", "benchmarks.peers.dying_dramatiq", "-p", "1", "-t", THREADS),
        "benchmarks.peers.dying_dramatiq",
    ),
    Peer(
        "Celery",
        lambda: environment.commands("celery"),
        ("celery", "-A", "benchmarks.peers.dying_celery", "worker", "-c", THREADS, "--loglevel", "ERROR"),
        "benchmarks.peers.dying_celery",
    ),
]


def taken_up_after(peer: Peer, redis_url: str, *, tasks: int, wait_seconds: float) -> list[float | None]:
    """Kill one of two workers with tasks at work; how long each took to be started again, None: longer than that."""
    commands, client = peer.commands(), redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=None)
    client.flushall()
    with worker(peer, commands, redis_url) as first, worker(peer, commands, redis_url) as second:
        send = [str(commands / "python"), "-m", peer.module, str(tasks)]
        subprocess.run(send, check=True, cwd=ROOT, env=variables(redis_url))
        started = starts(client, tasks, within=60)
        groups = {number: os.getpgid(pid) for number, pid in started}
        victim = max((first, second), key=lambda process: list(groups.values()).count(process.pid))
        interrupted = {number for number, group in groups.items() if group == victim.pid}
        os.killpg(victim.pid, signal.SIGKILL)
        after: dict[str, float] = {}
        killed_at = time.monotonic()
        while interrupted - after.keys() and time.monotonic() < killed_at + wait_seconds:
            for number, _ in starts(client, 1, within=1):
                after[number] = time.monotonic() - killed_at
    client.close()
    return [after.get(number) for number in sorted(interrupted)]


def starts(client: redis.Redis, count: int, *, within: float) -> list[tuple[str, int]]:
    """The next starts of tasks, at most so many: number and pid."""
    found: list[tuple[str, int]] = []
    deadline = time.monotonic() + within
    while len(found) < count and (left := deadline - time.monotonic()) > 0:
        told = client.blpop([STARTED], timeout=left)
        if told:
            number, pid = str(told[1]).split()
            found.append((number, int(pid)))
    return found


@contextmanager
def worker(peer: Peer, commands: Path, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, killed afterwards."""
    command = [str(commands / peer.worker[0]), *peer.worker[1:]]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables(redis_url),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def variables(redis_url: str) -> dict[str, str]:
    """What a peer's processes have in theirs."""
    return {**os.environ, "REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
