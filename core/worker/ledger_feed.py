"""Takes due runs directly from the ledger for the threads of this process: always in local mode, and in the mode
``auto`` while Redis is away.

Taking a run does not claim it: it marks the run as sent, so that no other process takes the run at the same time. Only
the claim decides which process works on the run. Two kinds of runs are taken again: runs that were sent before Redis
was lost, and runs that were taken but not claimed within ``ROTA_RESEND_SECONDS``.
"""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from sqlalchemy import Connection, Engine

from core import database
from core.ledger import direct, history, pauses
from core.ledger.carrier import Carrier, OutgoingRun
from core.ledger.runs import DUE_CHANNEL
from core.ledger.sessions import LedgerThread
from core.observability.events import LedgerFeedFailed, LedgerFeedInterrupted, emit
from core.observability.logs import EmitOnce
from core.transport.work_queue import Opening

#: A run's mark need not be flushed to the disk. If PostgreSQL crashes and loses the mark, the run is taken twice, but
#: only one claim succeeds.
UNFLUSHED = "SET synchronous_commit = off"


class Threads(Protocol):
    """The threads of the worker, as the feed sees them."""

    def openings(self, queues: Sequence[str]) -> Iterable[Opening]:
        """Yield openings: each says how many runs of which queues could start now.

        The caller must pass the runs of one opening to ``work_on`` before it asks for the next opening.
        """

    @property
    def are_draining(self) -> bool:
        """Whether the threads must not take more runs."""

    def work_on(self, run: OutgoingRun) -> None:
        """Give the run to one of the threads."""


class LedgerFeed(LedgerThread):
    """The thread of a worker process that takes runs from the ledger while ``carrier`` cannot send messages."""

    def __init__(
        self,
        engine: Engine,
        carrier: Carrier,
        *,
        scopes: Mapping[str, Collection[str]],
        every_seconds: float,
        resend_seconds: float,
    ) -> None:
        super().__init__(engine, "rota-ledger-feed")
        self._carrier = carrier
        self._scopes = scopes
        self._every_seconds = every_seconds
        self._resend_seconds = resend_seconds
        self._threads: Threads | None = None
        self._queues: list[str] = []
        self._is_taking = False
        self._turns = direct.Turns()
        self._log_once = EmitOnce()

    def feed(self, threads: Threads, queues: Sequence[str]) -> None:
        """Start taking runs of ``queues`` for ``threads``."""
        self._threads, self._queues = threads, list(queues)
        self.start()

    @property
    def is_needed(self) -> bool:
        """Whether the threads need runs, and can get them only from the ledger."""
        return self._threads is not None and not (self._carrier.carries or self._threads.are_draining)

    def thread_is_free(self) -> None:
        """Look for runs at once, since a thread has become free."""
        if self._is_taking:
            self.wake()

    def work(self, connection: Connection) -> None:
        """Take runs while Redis cannot carry them."""
        assert self._threads is not None
        connection.exec_driver_sql(UNFLUSHED)
        connection.exec_driver_sql(f"LISTEN {DUE_CHANNEL}")
        began = history.now(connection)
        self._is_taking = True
        while self.is_needed and not self._stopping.is_set():
            self._take(connection, self._threads, began)
            self._log_once.reset()
            self.wait(connection, self._every_seconds)

    def interrupted(self, error: Exception) -> None:
        """Log the error once."""
        self._log_once.emit(LedgerFeedInterrupted(database.brief(error)))

    def failed(self) -> None:
        """Log the error."""
        emit(LedgerFeedFailed(), sys.exception())

    def ended(self) -> float:
        """Stop taking runs, since the session has ended. Return the wait before the next session, in seconds."""
        self._is_taking = False
        return super().ended()

    def _take(self, connection: Connection, threads: Threads, began: datetime) -> None:
        """Give runs to free threads, until there is no free thread or no due run."""
        may_be_more = True
        while may_be_more and not self._stopping.is_set():
            may_be_more = False
            for opening in threads.openings(self._queues):
                may_be_more |= self._fill(connection, threads, opening, began)

    def _fill(self, connection: Connection, threads: Threads, opening: Opening, began: datetime) -> bool:
        """Give runs to the threads of ``opening``. Return whether each of these threads has a run now."""
        if not opening.most:
            return False
        held = pauses.held(pauses.active(connection), self._scopes)
        jobs = (self._scopes.keys() if opening.jobs is None else opening.jobs) - held.keys()
        taken = direct.take(
            connection,
            jobs,
            opening.queues,
            self._turns,
            most=opening.most,
            began=began,
            resend_seconds=self._resend_seconds,
        )
        for run in taken:
            threads.work_on(run)
        return len(taken) == opening.most
