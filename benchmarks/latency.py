"""Measures the time from sending a message to the start of its job, with idle workers and one message at a time.

It compares bare Dramatiq, the fast lane, ledger runs from a process with Redis, and ledger runs from an application
without Redis (PostgreSQL notifies the dispatcher). All four workers run on the same servers, and their samples are
interleaved.

python -m benchmarks.latency [--samples 60]
"""

import argparse
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from dramatiq.message import Message

from benchmarks import goals, meter
from benchmarks.harness import Bench, bench, wait_for
from core import database
from core.ledger.carrier import OutgoingRun
from core.ledger.runs import request
from core.transport.redis import RedisCarrier


def send_message(made: Bench, queue: str) -> None:
    """A plain message, as Dramatiq's own producers write it, with the time it was sent."""
    kwargs = {"sent_at": time.time()}
    made.broker.enqueue(Message(queue_name=queue, actor_name=queue, args=(), kwargs=kwargs, options={}))


def send_run(made: Bench, *, carried: bool) -> None:
    """A run of the ledger, its message sent after the commit by us or by the dispatcher."""
    from datetime import timedelta

    args = f'{{"sent_at": {time.time()}}}'
    with database.autocommit(made.engine) as connection:
        run_id = request(
            connection, "bench-ledger", key="", queue="bench-ledger", args=args, exclusive=False,
            delay=timedelta(0), carried=carried,
        )  # fmt: skip
    if carried:
        RedisCarrier(made.broker.redis_queues).send([OutgoingRun(run_id, "bench-ledger", "bench-ledger")])


def sample(send: Callable[[], None], ticks: Path) -> float:
    """Milliseconds from sending to the job."""
    before = len(meter.ticks(ticks))
    send()
    wait_for(lambda: len(meter.ticks(ticks)) > before, within=10)
    at, sent = meter.ticks(ticks)[before]
    return (at - sent) * 1000


#: In milliseconds.
GOALS = {("fast", "p50"): 3, ("fast", "p99"): 20, ("ledger", "p50"): 8}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=60)
    options = parser.parse_args()
    dice = random.Random(1)
    with bench() as made, ExitStack() as workers:
        ticks = {lane: made.ticks / lane for lane in ("bare", "fast", "ledger")}
        workers.enter_context(made.worker(ticks["bare"], "benchmarks.bare", "bench-bare"))
        workers.enter_context(made.worker(ticks["fast"], "core.main", "bench-fast"))
        workers.enter_context(made.worker(ticks["ledger"], "core.main", "bench-ledger"))
        lanes: dict[str, tuple[Callable[[], None], Path]] = {
            "bare": (lambda: send_message(made, "bench-bare"), ticks["bare"]),
            "fast": (lambda: send_message(made, "bench-fast"), ticks["fast"]),
            "ledger": (lambda: send_run(made, carried=True), ticks["ledger"]),
            "ledger, notified": (lambda: send_run(made, carried=False), ticks["ledger"]),
        }
        for send, path in lanes.values():
            sample(send, path)
        values: dict[str, list[float]] = {lane: [] for lane in lanes}
        for _ in range(options.samples):
            for lane, (send, path) in lanes.items():
                time.sleep(dice.uniform(0.1, 0.4))
                values[lane].append(sample(send, path))
    for lane, found in values.items():
        p50, p99 = meter.percentile(found, 0.5), meter.percentile(found, 0.99)
        print(f"{lane:18} p50 {p50:7.1f} ms   p99 {p99:7.1f} ms")
        for name, value in (("p50", p50), ("p99", p99)):
            if (lane, name) in GOALS:
                goals.at_most(f"idle pick-up, {lane}, {name}", value, GOALS[lane, name], "ms")
    bare = meter.percentile(values["bare"], 0.5)
    for lane in list(lanes)[1:]:
        print(f"ratio bare/{lane}, p50: {bare / meter.percentile(values[lane], 0.5):.1f}")


if __name__ == "__main__":
    main()
