"""The program for one run in a process that runs nothing else: ``python -m core.worker.isolated_run RUN``.

A worker starts this program for a run during which processes have died before. If this process dies too, the run is the
cause, and ends as dead. If another run was the cause, this run works normally here. If the worker dies or stops, this
process releases the run, uncounted, and exits.
"""

import logging
import os
import select
import signal
import sys
import threading

from sqlalchemy import text

from core import forks
from core.ledger import outbox
from core.settings import Settings
from core.transport import redis
from core.transport.redis import Queues, RedisCarrier
from core.worker.executor import Executor
from core.worker.heartbeat import Heartbeat
from core.worker.membership import process_name
from core.worker.process import gather

logger = logging.getLogger(__name__)

JOB = text("SELECT job FROM rota_runs WHERE id = :run_id")
#: The longest wait until this process is registered, in seconds. After that, it exits, and the run is sent again.
REGISTER_SECONDS = 30.0


def main(run_id: int) -> None:
    """Claim the run and work on it."""
    asked_to_leave = listen()
    process = gather()
    attach_carrier(process.configured)
    heartbeat = process.heartbeat("isolated")
    heartbeat.start(threads=1)
    threading.Thread(target=leave, args=(asked_to_leave, heartbeat), name="rota-leaving", daemon=True).start()
    watchdog = process.watchdog()
    watchdog.start()
    if not heartbeat.registered.wait(REGISTER_SECONDS):
        sys.exit("rota: not registered with the ledger; the run will be sent again")
    with process.engine.connect() as connection:
        name = connection.execute(JOB, {"run_id": run_id}).scalar_one()
    executor = Executor(process.engine, heartbeat, process_name())  # no run is isolated again in this process
    forks.begin()
    executor.execute(process.registry.job(name), run_id)
    forks.end()
    executor.wakes.stop()
    heartbeat.stop()
    watchdog.stop()


def attach_carrier(configured: Settings) -> None:
    """Let this process send the messages of runs that its job enqueues, over Redis.

    Without Redis, workers take these runs from the ledger.
    """
    if configured.redis_url is not None and configured.mode != "local":
        outbox.attach(RedisCarrier(Queues(redis.connect(configured.redis_url.get_secret_value()))))


def listen() -> list[int]:
    """Return file descriptors, one of which becomes readable when this process must exit.

    This process must exit when the worker tells it to, or when the worker has closed the pipe.
    """
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # programs that the job starts must not inherit the pipe
    os.close(nothing)
    told, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGINT, signal.SIGTERM):
        # The handler does nothing, since Python calls it in the main thread, which may be waiting for a statement. The
        # byte that Python writes to the wake-up descriptor is enough.
        signal.signal(number, lambda *_: None)
    return [pipe, told]


def leave(asked: list[int], heartbeat: Heartbeat) -> None:
    """Wait until this process must exit. Then release the run and end the process, with the job in it."""
    select.select(asked, [], [])
    heartbeat.stop()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
