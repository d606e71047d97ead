"""Takes due runs straight from the ledger, for the threads of this process: always in local mode, and in ``auto``
while Redis is away.

Taking is no claim. A run that is taken is marked as sent, so that no other process takes it in the same moment; who may
work on it is decided by the claim, as ever. What was sent before Redis was lost counts as lost with it, and so does
what was taken and not claimed within ``ROTA_RESEND_SECONDS``.
"""

import logging
import select
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Protocol

import psycopg2
from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from core import database
from core.ledger import due, history, pauses
from core.ledger.carrier import OutgoingRun
from core.ledger.runs import DUE_CHANNEL
from core.observability.logs import LogOnce

logger = logging.getLogger(__name__)

#: How long to wait after an error, and how soon the loss of Redis is acted upon, in seconds.
AGAIN_SECONDS = 1.0

#: A mark that is lost with PostgreSQL costs a second taking, which no claim follows.
UNFLUSHED = "SET synchronous_commit = off"


class Hands(Protocol):
    """The threads that work."""

    @property
    def free(self) -> int:
        """How many of them have nothing to do."""

    def work_on(self, run: OutgoingRun) -> None:
        """Have one of them work on the run."""


class DirectTaker(threading.Thread):
    """One in every worker process."""

    def __init__(
        self,
        engine: Engine,
        hands: Hands,
        *,
        scopes: Mapping[str, Collection[str]],
        queues: Collection[str],
        is_needed: Callable[[], bool],
        every_seconds: float,
        resend_seconds: float,
    ) -> None:
        super().__init__(name="rota-direct", daemon=True)
        self._engine = engine
        self._hands = hands
        self._scopes = scopes
        self._queues = list(queues)
        self._is_needed = is_needed
        self._every_seconds = every_seconds
        self._resend_seconds = resend_seconds
        self._stopping = threading.Event()
        self._is_taking = False
        self._log_once = LogOnce(logger)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def run(self) -> None:
        """Take whenever it is needed; errors are logged and survived."""
        while not self._stopping.is_set():
            try:
                if self._is_needed():
                    with database.dedicated(self._engine) as connection:
                        self._take_while_needed(connection)
            except (DBAPIError, PoolTimeout, psycopg2.Error) as error:
                self._log_once.error(f"direct.interrupted: {database.brief(error)}; going on when it can")
            except Exception:  # a background loop outlives its errors
                logger.exception("direct.failed: going on")
            self._is_taking = False
            self._stopping.wait(AGAIN_SECONDS)

    def wake(self) -> None:
        """A thread has become free."""
        if self._is_taking:
            with suppress(OSError):  # it is awake already, or has ended
                self._writer.send(b".")

    def stop(self, *, timeout_seconds: float = 10) -> None:
        """Take nothing more."""
        self._stopping.set()
        self.wake()
        if self.is_alive():
            self.join(timeout_seconds)
        if not self.is_alive():
            self._reader.close()
            self._writer.close()

    def _take_while_needed(self, connection: Connection) -> None:
        connection.exec_driver_sql(UNFLUSHED)
        connection.exec_driver_sql(f"LISTEN {DUE_CHANNEL}")
        began = history.now(connection)
        self._is_taking = True
        while self._is_needed() and not self._stopping.is_set():
            self._take(connection, began)
            self._log_once.reset()
            self._wait(connection)

    def _take(self, connection: Connection, began: datetime) -> None:
        """Give every free thread a run, as long as there are both."""
        while (free := self._hands.free) and not self._stopping.is_set():
            held = pauses.held(pauses.active(connection), self._scopes)
            jobs = self._scopes.keys() - held.keys()
            outgoing = due.take_direct(
                connection, jobs, self._queues, most=free, began=began, resend_seconds=self._resend_seconds
            )
            for run in outgoing:
                self._hands.work_on(run)
            if len(outgoing) < free:
                return

    def _wait(self, connection: Connection) -> None:
        """Wait until something may be due or a thread is free, at most until the next pass."""
        driver: DriverConnection = connection.connection.dbapi_connection  # type: ignore[assignment]
        if not driver.notifies:
            select.select([driver.fileno(), self._reader.fileno()], [], [], self._every_seconds)
            driver.poll()
        driver.notifies.clear()
        with suppress(BlockingIOError):
            self._reader.recv(4096)
