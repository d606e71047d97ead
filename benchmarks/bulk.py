"""Enqueues many messages with one producer: a loop of Dramatiq's send(), send_many and enqueue_many, and
Procrastinate's batches.

Procrastinate is installed in an environment of its own under .bench/, on first use. Without a package index, it is left
out. Each round sends ``--messages`` in each of these ways, in batches of 500.

python -m benchmarks.bulk [--messages 5000] [--repetitions 5] [--without-procrastinate]
"""

import argparse
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from statistics import median

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from sqlalchemy.orm import Session

from benchmarks import goals, meter
from benchmarks.harness import ROOT, Bench, bench
from core import enqueue_many, job, send_many
from core.ledger import outbox
from core.plugins import loading
from core.testing import create_database, registry_of
from core.transport.redis import RedisCarrier

BATCH = 500
PEERS = ROOT / ".bench"
PROCRASTINATE = "procrastinate==3.*"

DEFER = """
import sys, time
import procrastinate
app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=sys.argv[1]))
@app.task(name="bench")
def bench(number): ...
with app.open():
    app.schema_manager.apply_schema()
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        began = time.perf_counter()
        for start in range(0, count, 500):
            bench.batch_defer(*[{"number": number} for number in range(start, min(start + 500, count))])
        print(count / (time.perf_counter() - began), flush=True)
"""


@job("bench-durable", queue="bench-bulk", overlap="allow")
def durable(run: object, number: int) -> None:
    """A run of the ledger."""


@job("bench-cheap", queue="bench-bulk", ledger=False)
def cheap(run: object, number: int) -> None:
    """A message of the fast lane."""


def nothing(number: int) -> None:
    """Dramatiq's own actor."""


def in_batches(made: Bench, count: int, ask: Callable[..., object], name: str) -> None:
    """Ask for ``count``, each batch in a transaction of its own."""
    for start in range(0, count, BATCH):
        with Session(made.engine) as session, session.begin():
            ask(session, name, [{"number": number} for number in range(start, min(start + BATCH, count))])


def rate(count: int, what: Callable[[], object]) -> float:
    """How many a second."""
    began = time.perf_counter()
    what()
    return count / (time.perf_counter() - began)


def procrastinate(url: str) -> "subprocess.Popen[str] | None":
    """A process that defers what it is told to; None if Procrastinate cannot be had."""
    python = PEERS / "procrastinate" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    install = [str(python), "-m", "pip", "install", "-q", PROCRASTINATE, "psycopg[binary]"]
    if subprocess.run(install, check=False, stdout=sys.stderr).returncode:
        return None
    process = subprocess.Popen(
        [str(python), "-c", DEFER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    return process if process.stdout.readline() == "ready\n" else None


def deferred(process: "subprocess.Popen[str]", count: int) -> float:
    """How many a second it deferred."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--without-procrastinate", action="store_true")
    options = parser.parse_args()
    count: int = options.messages
    with bench() as made, loading.using(registry_of(durable, cheap)):
        broker = RedisBroker(url=made.redis_url)
        bare = dramatiq.actor(actor_name="bare", queue_name="bare", broker=broker)(nothing)
        outbox.attach(RedisCarrier(made.broker.redis_queues))
        ways: dict[str, Callable[[], float]] = {
            "send loop": lambda: rate(count, lambda: deque((bare.send(number=n) for n in range(count)), maxlen=0)),
            "send_many": lambda: rate(count, lambda: in_batches(made, count, send_many, "bench-cheap")),
            "enqueue_many": lambda: rate(count, lambda: in_batches(made, count, enqueue_many, "bench-durable")),
        }
        url = create_database(made.postgres_url, "procrastinate")
        peer = None if options.without_procrastinate else procrastinate(url)
        if peer is not None:
            ways["procrastinate"] = lambda: deferred(peer, count)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for repetition in range(-1, options.repetitions):
            made.reset()
            for name, way in ways.items():
                value = way()
                if repetition >= 0:
                    rates[name].append(value)
        if peer is not None:
            peer.kill()
            peer.wait()
    for name, values in rates.items():
        print(f"{name:13} {meter.spread(values)} a second")
    for name, beside, goal in (("send_many", "send loop", 7), ("enqueue_many", "procrastinate", 2)):
        if beside in rates:
            ratios = [ours / theirs for ours, theirs in zip(rates[name], rates[beside], strict=True)]
            print(f"ratio {name}/{beside}: {meter.spread(ratios)} (goal {goal})")
            goals.at_least(f"{name} / {beside}", median(ratios), goal)


if __name__ == "__main__":
    main()
