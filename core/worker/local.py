"""``SCHEDULER_MODE=local``: the whole service in one process, without Redis. ``rota worker`` starts it in this mode.

The dispatcher inserts slots when they are due, and the ledger feed gives the due runs to the threads of this process.
These are the threads of a Dramatiq worker, so jobs, middleware and limits are the same as in the other modes.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence

import dramatiq
from dramatiq.middleware import CurrentMessage
from dramatiq.worker import Worker

from core.ledger import outbox
from core.middleware.fast_lane_retries import FastLaneRetries
from core.middleware.fitness import FitServers
from core.middleware.ledger_feed import LedgerFeeding
from core.middleware.lifecycle import Lifecycle
from core.middleware.liveness import Liveness
from core.middleware.periodiq_options import PeriodiqOptions
from core.middleware.recycling import Recycling
from core.transport.local import LocalBroker, LocalCarrier
from core.worker import actors
from core.worker.process import WorkerProcess, gather

DRAINED_EVERY_SECONDS = 0.05


def build(process: WorkerProcess) -> LocalBroker:
    """Return the broker with its middleware and actors; see ``core/main.py``."""
    heartbeat = process.heartbeat("worker")
    broker = LocalBroker(reserved=process.reserved)
    carrier = LocalCarrier(broker)
    outbox.attach(carrier)

    lease_seconds = process.configured.lease_seconds
    broker.add_middleware(Liveness(process.engine, heartbeat, lease_seconds))  # first, to show life from the beginning
    broker.add_middleware(CurrentMessage())  # next, so that later middleware can read the current message
    broker.add_middleware(PeriodiqOptions())  # before actors are declared with these options
    broker.add_middleware(LedgerFeeding(process.ledger_feed(carrier)))  # the only source of runs in this mode
    broker.add_middleware(FitServers(process.fitness()))  # checks the servers before they are used
    broker.add_middleware(Lifecycle(heartbeat, process.dispatcher(carrier), process.watchdog()))  # as in core/main.py
    broker.add_middleware(Recycling(process.recycling_limits))  # counts messages that have ended
    broker.add_middleware(FastLaneRetries())  # last, so that it is the first to see a failed message

    actors.declare(broker, process.registry, process.engine, process.executor(heartbeat), carrier)
    return broker


def run(broker: LocalBroker, queues: Sequence[str], threads: int, grace_seconds: float) -> None:
    """Work until SIGTERM or SIGINT.

    After the signal, finish the running jobs and the messages in memory, within the grace period.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    dramatiq.set_broker(broker)
    worker = Worker(broker, queues=set(queues) or None, worker_threads=threads)
    worker.start()
    stopping.wait()
    deadline = time.monotonic() + grace_seconds
    broker.drain()
    while time.monotonic() < deadline and not broker.is_drained:
        time.sleep(DRAINED_EVERY_SECONDS)
    worker.stop(timeout=max(round((deadline - time.monotonic()) * 1000), 1))


def main(words: Sequence[str] | None = None) -> None:
    """Run this process as a worker. ``words`` are the arguments that ``rota worker`` passes on."""
    parser = argparse.ArgumentParser(prog="python -m core.worker.local", description=__doc__)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--queues", nargs="*", default=[])
    parser.add_argument("--grace", type=float, default=60.0)
    given = parser.parse_args(words)
    process = gather()
    if process.configured.mode != "local":
        sys.exit("rota: core.worker.local is for SCHEDULER_MODE=local; run `rota worker`, which knows what to start")
    run(build(process), given.queues, given.threads, given.grace)


if __name__ == "__main__":
    main()
