"""The peers of the recovery benchmark: bare Dramatiq, and Celery in a virtual environment of its own under ``.bench/``.

Each is set up as its documentation begins, with nothing but the broker's address.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".bench"
THREADS = "4"
#: Each start of a task is pushed here as "number pid".
STARTED = "recovery:started"


@dataclass(frozen=True)
class Peer:
    """How to start a worker of a peer, and how to send it tasks."""

    name: str
    python: Callable[[], Path]
    worker: tuple[str, ...]
    module: str


def ours() -> Path:
    """This interpreter; Dramatiq is there."""
    return Path(sys.executable)


def celery() -> Path:
    """An interpreter that has Celery, made if it is not there."""
    python = CACHE / "celery" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "celery[redis]"]
        if subprocess.run(install, check=False, capture_output=True).returncode:
            shutil.rmtree(CACHE / "celery")
            raise SystemExit("Celery could not be installed; --only names a case that does without it")
    return python


PEERS = [
    Peer("bare Dramatiq", ours, ("dramatiq", "benchmarks.peer_dramatiq", "-p", "1", "-t", THREADS), "peer_dramatiq"),
    Peer(
        "Celery",
        celery,
        ("celery", "-A", "benchmarks.peer_celery", "worker", "-c", THREADS, "--loglevel", "ERROR"),
        "peer_celery",
    ),
]


def taken_up_after(peer: Peer, redis_url: str, *, tasks: int, wait_seconds: float) -> list[float | None]:
    """Kill one of two workers with tasks at work; how long each took to be started again, None: longer than that."""
    python, client = peer.python(), redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=None)
    client.flushall()
    with worker(peer, python, redis_url) as first, worker(peer, python, redis_url) as second:
        send = [str(python), "-m", f"benchmarks.{peer.module}", str(tasks)]
        subprocess.run(send, check=True, cwd=ROOT, env=environment(redis_url))
        started = starts(client, tasks, within=60)
        groups = {number: os.getpgid(pid) for number, pid in started}
        victim = max((first, second), key=lambda process: list(groups.values()).count(process.pid))
        interrupted = {number for number, group in groups.items() if group == victim.pid}
        os.killpg(victim.pid, signal.SIGKILL)
        killed_at, after = time.monotonic(), {}
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
            number, pid = told[1].split()
            found.append((number, int(pid)))
    return found


@contextmanager
def worker(peer: Peer, python: Path, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, killed afterwards."""
    command = [str(python.parent / peer.worker[0]), *peer.worker[1:]]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(redis_url),
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


def environment(redis_url: str) -> dict[str, str]:
    """What a peer's processes have in theirs."""
    return {**os.environ, "REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
