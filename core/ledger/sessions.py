"""Threads that have their own PostgreSQL session, for locks and notifications. These end with the session."""

import select
import socket
import threading
from contextlib import suppress

import psycopg2
from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, Engine

from core import database, forks

#: The wait before the next session, in seconds, if the thread does not say otherwise.
AGAIN_SECONDS = 1.0


class LedgerThread(threading.Thread):
    """A thread that works on a PostgreSQL session, and opens a new session when one ends, until the thread is stopped.

    A subclass defines ``work``, and logs errors.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._engine = engine
        self._stopping = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        forks.keep_from_children(self._reader)
        forks.keep_from_children(self._writer)

    def work(self, connection: Connection) -> None:
        """Work on a new session. When it returns or raises, the session ends."""
        raise NotImplementedError

    def interrupted(self, error: Exception) -> None:
        """Handle an error that means that PostgreSQL cannot be reached."""
        raise NotImplementedError

    def failed(self) -> None:
        """Handle any other error. Called in the ``except`` block, so ``sys.exception()`` returns the error."""
        raise NotImplementedError

    def ended(self) -> float:
        """Handle the end of the session. Return how many seconds to wait before the next session."""
        return AGAIN_SECONDS

    @property
    def is_needed(self) -> bool:
        """Whether a session is needed now."""
        return True

    def run(self) -> None:
        """Work until stopped. Errors are logged and do not end the thread."""
        while not self._stopping.is_set():
            try:
                if self.is_needed:
                    with database.dedicated(self._engine) as connection:
                        self.work(connection)
            except (*database.DATABASE_AWAY, psycopg2.Error) as error:
                self.interrupted(error)
            except Exception:  # noqa: BLE001 — a background loop outlives its errors, and ``failed`` logs this one
                self.failed()
            self._stopping.wait(self.ended())

    def wake(self) -> None:
        """End the thread's current ``wait``."""
        with suppress(OSError):  # the thread is awake already, or has ended
            self._writer.send(b".")

    def stop(self, *, timeout_seconds: float = 10) -> None:
        """Stop the thread. May also be called if the thread was never started."""
        self._stopping.set()
        self.wake()
        if self.is_alive():
            self.join(timeout_seconds)
        if not self.is_alive():
            self._reader.close()
            self._writer.close()

    def wait(self, connection: Connection, seconds: float) -> bool:
        """Wait at most ``seconds`` for a notification, ``wake`` or ``stop``. Return whether PostgreSQL notified.

        Raises psycopg2's Error at once if the connection is cut.
        """
        is_notified = wait_for_notification(connection, seconds, self._reader)
        with suppress(BlockingIOError):
            self._reader.recv(4096)
        return is_notified


def wait_for_notification(connection: Connection, seconds: float, *others: socket.socket) -> bool:
    """Wait at most ``seconds`` until PostgreSQL notifies or one of ``others`` is readable.

    Return whether PostgreSQL notified.

    Raises psycopg2's Error at once if the connection is cut.
    """
    driver: DriverConnection = connection.connection.dbapi_connection  # type: ignore[assignment]
    if not driver.notifies:
        numbers = [driver.fileno(), *(other.fileno() for other in others)]
        select.select(numbers, [], [], max(seconds, 0))
        driver.poll()
    is_notified = bool(driver.notifies)
    driver.notifies.clear()
    return is_notified
