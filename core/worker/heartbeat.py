"""The thread that keeps a process registered in the ledger, so that all its leases stay valid."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from psycopg2.errors import InsufficientPrivilege, UndefinedColumn, UndefinedTable
from sqlalchemy import Connection, Engine
from sqlalchemy.pool import QueuePool

from core import database
from core.dispatcher import cancelled
from core.dispatcher.recovery import Outage
from core.errors import AttemptLost, Cancelled
from core.ledger import cancels, processes, releases, runs
from core.ledger.models import State
from core.ledger.processes import Identity
from core.ledger.releases import Release
from core.ledger.sessions import LedgerThread
from core.observability import metrics
from core.observability.events import (
    ProcessExpired,
    ProcessNotRegistered,
    ProcessRegistered,
    ProcessReleased,
    ProcessResumed,
    RunCancelling,
    RunForgotten,
    RunInterrupted,
    RunLostTooOften,
    emit,
)
from core.observability.logs import EmitOnce
from core.worker import idle_transactions, interruption
from core.worker.membership import LeasesInHand
from core.worker.rights import MissingRights

#: One log line names at most this many runs.
NAMED_RUNS = 20
#: The wait before the process tries again to register, in seconds.
REGISTER_AGAIN_SECONDS = 0.5
#: A claimed run that no thread is working on is released when the claim is this old, in seconds. The check for such
#: runs has the same interval. The time is longer than a connection waits for an answer, so that the thread that has
#: made the claim cannot still get its answer.
FORGOTTEN_SECONDS = 15.0


def nothing() -> None:
    """Do nothing."""


class Heartbeat(LedgerThread):
    """Registers the process and renews its leases. When the leases are lost, registers the process again.

    ``process_id`` is None while the process may not claim runs. When the process gets a new id, runs that were claimed
    with the old id can no longer commit. If the connection is cut, the thread notices this at once. The process then
    continues with the same id on a new connection, unless its leases have expired or PostgreSQL was restarted.
    """

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        *,
        every_seconds: float,
        lease: timedelta,
        release: Release | None = None,
        outage: Outage | None = None,
    ) -> None:
        """``outage`` records stalls of PostgreSQL, for the dispatcher of this process."""
        super().__init__(engine, "rota-heartbeat")
        #: The leases that this process knows it has.
        self.in_hand = LeasesInHand()
        #: Set while the process has an id and is connected to PostgreSQL.
        self.registered = threading.Event()
        self._on_registered: Callable[[], None] = nothing
        self._release = release
        self._identity = replace(identity, release=release.fingerprint if release else None)
        self._every_seconds = every_seconds
        self._outage = outage or Outage()
        self._lease = lease
        self._looked_at = 0.0
        self._log_once = EmitOnce()
        self._missing_rights = MissingRights(engine)
        #: The last id of this process. The ledger may still have runs that were claimed with this id.
        self._last_id: int | None = None
        #: The earliest time at which the leases may expire, by this process's monotonic clock.
        self._good_until = 0.0

    def start(
        self,
        queues: Sequence[str] = (),
        broker_id: str | None = None,
        *,
        threads: int | None = None,
        on_registered: Callable[[], None] = nothing,
    ) -> None:
        """Register the process, which serves ``queues`` with ``threads`` and marks its messages with ``broker_id``.

        ``on_registered`` is called in the heartbeat's thread whenever the process has registered.
        """
        reserved = {queue: count for queue, count in self._identity.reserved.items() if queue in queues}
        self._identity = replace(
            self._identity, queues=tuple(queues), broker_id=broker_id, threads=threads, reserved=reserved
        )
        self._on_registered = on_registered
        super().start()

    @property
    def process_id(self) -> int | None:
        """The process's id in the ledger, or None when its leases have expired."""
        return self._last_id if time.monotonic() < self._good_until else None

    @property
    def is_registered(self) -> bool:
        """Whether the process has an id, and is connected to PostgreSQL."""
        return self.registered.is_set()

    def work(self, connection: Connection) -> None:
        """Stay registered until stopped."""
        if not self._has_resumed(connection):
            self._register(connection)
        self.registered.set()
        self._on_registered()
        self._log_once.reset()
        self._missing_rights.reset()
        assert self._last_id is not None
        cancels.listen(connection, self._last_id)
        self._beat(connection, self._last_id)

    def interrupted(self, error: Exception) -> None:
        """Log why the process is not registered."""
        said = getattr(error, "orig", error)
        if isinstance(said, InsufficientPrivilege):
            remedy = self._missing_rights.remedy()
            if remedy:
                emit(ProcessNotRegistered(f"the role lacks rights: {remedy}"))
            return
        is_empty = isinstance(said, UndefinedColumn | UndefinedTable)
        reason = "the database is not migrated, run `rota db upgrade`" if is_empty else database.brief(error)
        self._log_once.emit(ProcessNotRegistered(reason))

    def failed(self) -> None:
        """Log the error."""
        emit(ProcessNotRegistered("a fault in Rota"), sys.exception())

    def ended(self) -> float:
        """Return the wait before the next session, in seconds: 0 if this process was registered, to keep its leases."""
        was_registered = self.registered.is_set()
        self.registered.clear()
        return 0 if was_registered else REGISTER_AGAIN_SECONDS

    def _has_resumed(self, connection: Connection) -> bool:
        now = time.monotonic()
        if self._last_id is None:
            return False
        if not processes.resume(connection, self._last_id, self._lease):
            self._lose()
            return False
        self._good_until = now + self._lease.total_seconds()
        emit(ProcessResumed(self._identity.kind, self._last_id))
        return True

    def _register(self, connection: Connection) -> None:
        if self._release is not None:  # first, so that the release exists when the process becomes visible
            releases.record(connection, self._release)
        now, former = time.monotonic(), self._last_id
        self._last_id = processes.register(connection, self._identity, self._lease)
        self._good_until = now + self._lease.total_seconds()
        emit(ProcessRegistered(self._identity.kind, self._last_id))
        if former is not None:
            self._leave(connection, former, "its worker lost PostgreSQL", "lost PostgreSQL")

    def _beat(self, connection: Connection, process_id: int) -> None:
        self._interrupt_cancelled(connection, process_id)
        while not self._is_stopped_within(connection, process_id, self._every_seconds):
            now = time.monotonic()
            with self._outage.timed():
                is_renewed = processes.renew(connection, process_id, self._lease)
            if not is_renewed:
                emit(ProcessExpired(process_id))
                self._lose()
                return
            self._good_until = now + self._lease.total_seconds()
            self._measure_pool()
            idle_transactions.tell(connection)
            self._interrupt_cancelled(connection, process_id)
            self._release_forgotten(connection, process_id)
        self._good_until = 0.0
        self._leave(connection, process_id, "its worker was stopped", "stopped")

    def _lose(self) -> None:
        """Interrupt all running attempts, whose leases are lost, so that they release their locks."""
        self._good_until = 0.0
        interrupted = interruption.interrupt(self.in_hand.tokens, AttemptLost)
        if interrupted:
            emit(RunInterrupted(interrupted))

    def _is_stopped_within(self, connection: Connection, process_id: int, seconds: float) -> bool:
        """Wait until this thread is stopped, at most ``seconds``, and handle cancels meanwhile.

        Raises psycopg2's Error at once if the connection is cut.
        """
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (remaining := until - time.monotonic()) > 0:
            if self.wait(connection, remaining):
                self._interrupt_cancelled(connection, process_id)
        return self._stopping.is_set()

    def _interrupt_cancelled(self, connection: Connection, process_id: int) -> None:
        """Interrupt the attempts of cancelled runs, and prevent attempts that have not started yet."""
        found = cancels.of_process(connection, process_id)
        self.in_hand.cancelled = frozenset(found)
        for token, run_id in found.items():
            if interruption.interrupt([token], Cancelled):
                emit(RunCancelling(run_id))

    def _release_forgotten(self, connection: Connection, process_id: int) -> None:
        """Release runs that this process has claimed but no thread is working on."""
        if time.monotonic() < self._looked_at + FORGOTTEN_SECONDS:
            return
        self._looked_at = time.monotonic()
        age = max(self._lease, timedelta(seconds=FORGOTTEN_SECONDS))
        tokens = self.in_hand.tokens
        forgotten = runs.release_forgotten(connection, process_id, tokens, age, "its worker lost the claim's answer")
        left = cancelled.tell(forgotten)
        released = [run.run_id for run in left if run.state == State.RETRYING]
        if released:
            emit(RunForgotten(len(released), ", ".join(map(str, released[:NAMED_RUNS]))))
        for run in left:
            if run.state == State.DEAD:
                metrics.run_ended(run.job, State.DEAD)
                emit(RunLostTooOften(run.job, run.run_id))

    def _leave(self, connection: Connection, process_id: int, reason: str, why: str) -> None:
        released = cancelled.tell(runs.release(connection, process_id, reason))
        if released:
            emit(ProcessReleased(len(released), reason))
        processes.resign(connection, process_id, why)

    def _measure_pool(self) -> None:
        pool = self._engine.pool
        if isinstance(pool, QueuePool):
            metrics.pool(in_use=pool.checkedout(), idle=pool.checkedin())
