"""Detects dead processes, and recovers their runs and messages.

Recovery has its own thread and connection, so that the dispatcher's other steps do not delay it.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import redis
from sqlalchemy import Connection, Engine

from core import database
from core.dispatcher import cancelled
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

#: A process whose connection was cut may take this long to return on another connection. The death of a process is
#: detected that much later.
COME_BACK_SECONDS = 0.5

#: Makes PostgreSQL plan every statement again, since a plan made for a small ledger is slow on a large one. Sequential
#: scans are off, since PostgreSQL overestimates how many waiting runs are due. JIT is off because these estimates would
#: trigger it.
PLANS = "SET plan_cache_mode = force_custom_plan; SET enable_seqscan = off; SET jit = off"


@dataclass(slots=True)
class Outage:
    """The last outage of PostgreSQL that this process noticed. Times are seconds of the monotonic clock.

    No process can renew its lease during an outage, so live processes have expired leases afterwards and need time to
    come back. A stall, in which PostgreSQL answers late and nothing fails, is an outage too. All threads that can
    notice an outage share one object.
    """

    #: If one of Rota's short statements takes longer than this many seconds, PostgreSQL has stalled, and leases may
    #: have expired.
    stall_seconds: float = float("inf")
    _began_at: float | None = None
    _seconds: float = 0.0
    _last_at: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def goes_on(self, now: float) -> None:
        """Remember that PostgreSQL cannot be reached."""
        with self._lock:
            if self._began_at is None:
                self._began_at = now
            recent = self._seconds if self._is_recent(now) else 0.0  # of two outages in a row, the longer counts
            self._seconds, self._last_at = max(now - self._began_at, recent), now

    def end(self) -> None:
        """Remember that PostgreSQL can be reached again."""
        with self._lock:
            self._began_at = None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Record an outage if the short statement in the block takes too long, even if it fails."""
        began = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            if now - began >= self.stall_seconds:
                self._stalled(now - began, now)

    def _stalled(self, seconds: float, now: float) -> None:
        with self._lock:
            self._seconds, self._last_at = max(seconds, self._seconds if self._is_recent(now) else 0.0), now

    def patience(self, now: float) -> timedelta | None:
        """Return how long ago the lease of a dead process must have expired, or None if there was no recent outage."""
        with self._lock:
            return timedelta(seconds=self._seconds + RETURN_SECONDS) if self._is_recent(now) else None

    def _is_recent(self, now: float) -> bool:
        return now - self._last_at < RETURN_SECONDS


class Recovery(LedgerThread):
    """The thread that recovers runs of dead processes as long as this process leads."""

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
        """Check for dead processes at regular intervals, until stopped."""
        self._outage.end()
        connection.exec_driver_sql(PLANS)
        while not self._stopping.is_set():
            self.beat(connection)
            self._log_once.reset()
            self.wait(connection, self._every_seconds)

    def interrupted(self, error: Exception) -> None:
        """Record the outage, so that processes get time to come back."""
        self._outage.goes_on(time.monotonic())
        self._log_once.emit(RecoveryInterrupted(database.brief(error)))

    def failed(self) -> None:
        """Log the error."""
        emit(RecoveryFailed(), sys.exception())

    def beat(self, connection: Connection) -> None:
        """Check for dead processes once, and recover their runs and messages."""
        with self._outage.timed():
            is_any_gone = processes.is_any_gone(connection)
        if is_any_gone:
            recover(connection, self._carrier, self._max_crashes, self._outage.patience(time.monotonic()))


def recover(
    connection: Connection, carrier: DispatchCarrier, max_crashes: int, patience: timedelta | None = None
) -> None:
    """End the leases of dead processes, recover their runs, and requeue the messages that they had fetched.

    A process that has just lost its advisory lock gets half a second to take it again. With ``patience``, after an
    outage, a process counts as dead only if its lease expired more than ``patience`` ago.
    """
    if patience is None and processes.misses_any(connection):
        time.sleep(COME_BACK_SECONDS)
    dead = processes.end_dead(connection, patience)
    for each in dead:
        metrics.reaped(each.kind)
        emit(ProcessLost(each.kind, each.id, each.name))
    recover_runs(connection, max_crashes)
    for each in dead:
        if each.broker_id and carrier.carries:
            requeue(carrier, each.broker_id, each.queues)


def recover_runs(connection: Connection, max_crashes: int) -> None:
    """Recover the runs of dead processes. Called before any command to Redis, since Redis may take long to answer."""
    for run in cancelled.tell(processes.recover(connection, max_crashes)):
        metrics.run_ended(run.job, run.state)
        emit(RunRecovered(run.job, run.run_id, run.attempt, run.state))


def requeue(carrier: DispatchCarrier, broker_id: str, queues: Iterable[str]) -> None:
    """Requeue a dead process's messages. Do nothing without Redis."""
    try:
        carrier.recover(broker_id, queues)
    except redis.RedisError as error:
        emit(DispatcherNotRecovered(str(error)))
