"""Notices dead processes and recovers what they had.

This has a thread and a connection of its own, so that nothing else that the dispatcher does delays it.
"""

import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

import redis
from sqlalchemy import Connection, Engine

from core import database
from core.ledger import processes
from core.ledger.carrier import DispatchCarrier
from core.ledger.processes import RETURN_SECONDS
from core.ledger.sessions import LedgerThread
from core.observability import metrics
from core.observability.events import (
    DispatcherNotRecovered,
    ProcessLost,
    RecoveryFailed,
    RecoveryInterrupted,
    RunRecovered,
    emit,
)
from core.observability.logs import EmitOnce

#: What a process whose connection was cut takes to be there on another, generously. A death is noticed that much later.
COME_BACK_SECONDS = 0.5

#: Statements that were planned while the ledger was small are planned again when it is not. They go by an index however
#: many runs PostgreSQL expects to be due: it expects as many of those that wait for tomorrow as of those that are over.
#: That makes a small table look costly to read, and is no reason to compile the statement.
PLANS = "SET plan_cache_mode = force_custom_plan; SET enable_seqscan = off; SET jit = off"


@dataclass(slots=True)
class Outage:
    """When this dispatcher was last without PostgreSQL, and for how long; times are monotonic seconds.

    Nobody could renew a lease meanwhile, so whoever comes back does so with a lease that ran out long ago. The threads
    of the dispatcher share one.
    """

    _began_at: float | None = None
    _seconds: float = 0.0
    _last_at: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def goes_on(self, now: float) -> None:
        """PostgreSQL could not be asked."""
        with self._lock:
            if self._began_at is None:
                self._began_at = now
            recent = self._seconds if self._is_recent(now) else 0.0  # a relapse makes it no shorter
            self._seconds, self._last_at = max(now - self._began_at, recent), now

    def end(self) -> None:
        """PostgreSQL can be asked again."""
        with self._lock:
            self._began_at = None

    def patience(self, now: float) -> timedelta | None:
        """How long ago a lease must have run out for its process to be dead; None: any process that seems so is."""
        with self._lock:
            return timedelta(seconds=self._seconds + RETURN_SECONDS) if self._is_recent(now) else None

    def _is_recent(self, now: float) -> bool:
        return now - self._last_at < RETURN_SECONDS


class Recovery(LedgerThread):
    """Recovers, beat by beat, for as long as this process leads."""

    def __init__(
        self, engine: Engine, carrier: DispatchCarrier, outage: Outage, *, every_seconds: float, max_crashes: int
    ) -> None:
        super().__init__(engine, "rota-recovery")
        self._carrier = carrier
        self._outage = outage
        self._every_seconds = every_seconds
        self._max_crashes = max_crashes
        self._log_once = EmitOnce()

    def work(self, connection: Connection) -> None:
        """Look again and again."""
        self._outage.end()
        connection.exec_driver_sql(PLANS)
        while not self._stopping.is_set():
            self.beat(connection)
            self._log_once.reset()
            self.wait(connection, self._every_seconds)

    def interrupted(self, error: Exception) -> None:
        """Processes are given time to come back."""
        self._outage.goes_on(time.monotonic())
        self._log_once.emit(RecoveryInterrupted(database.brief(error)))

    def failed(self) -> None:
        """Log it."""
        emit(RecoveryFailed(), sys.exception())

    def beat(self, connection: Connection) -> None:
        """Recover what there is to recover, once."""
        if processes.is_any_gone(connection):
            recover(connection, self._carrier, self._max_crashes, self._outage.patience(time.monotonic()))


def recover(
    connection: Connection, carrier: DispatchCarrier, max_crashes: int, patience: timedelta | None = None
) -> None:
    """End the leases of dead processes, hand their runs on, and put back the messages they had fetched.

    One that has just lost its lock is given a moment to come back; after an outage of PostgreSQL all have
    ``patience``, see ``Outage``.
    """
    if patience is None and processes.misses_any(connection):
        time.sleep(COME_BACK_SECONDS)
    dead = processes.reap(connection, patience)
    for each in dead:
        metrics.reaped(each.kind)
        emit(ProcessLost(each.kind, each.id, each.name))
    recover_runs(connection, max_crashes)
    for each in dead:
        if each.broker_id and carrier.carries:
            put_back(carrier, each.broker_id, each.queues)


def recover_runs(connection: Connection, max_crashes: int) -> None:
    """Hand on the runs of dead processes, before Redis is asked anything: it may take long to answer."""
    for run in processes.recover(connection, max_crashes):
        metrics.run_ended(run.job, run.state)
        emit(RunRecovered(run.job, run.run_id, run.attempt, str(run.state)))


def put_back(carrier: DispatchCarrier, broker_id: str, queues: Iterable[str]) -> None:
    """Put a dead process's messages back on their queues; without Redis there is nothing to put back."""
    try:
        carrier.recover(broker_id, queues)
    except redis.RedisError as error:
        emit(DispatcherNotRecovered(str(error)))
