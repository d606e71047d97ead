"""Threads that hold a session with PostgreSQL of their own: for locks and notifications, which end with it."""

import select
import socket
import threading
from contextlib import suppress

import psycopg2
from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, Engine

from core import database

#: How long to wait before the next session, if the thread does not say otherwise, in seconds.
AGAIN_SECONDS = 1.0


class LedgerThread(threading.Thread):
    """Works on a session, and on the next one when that has ended, until it is stopped.

    A subclass defines ``work``, and says in the log what an error means.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._engine = engine
        self._stopping = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def work(self, connection: Connection) -> None:
        """Work on a new session. When it returns or raises, the session ends."""
        raise NotImplementedError

    def interrupted(self, error: Exception) -> None:
        """PostgreSQL cannot be asked."""
        raise NotImplementedError

    def failed(self) -> None:
        """Something else was raised, which ``logger.exception`` has at hand."""
        raise NotImplementedError

    def ended(self) -> float:
        """The session has ended; how long to wait before the next, in seconds."""
        return AGAIN_SECONDS

    @property
    def is_needed(self) -> bool:
        """Whether a session is needed now."""
        return True

    def run(self) -> None:
        """Work until stopped; errors are logged and survived."""
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
        """End its present ``wait``."""
        with suppress(OSError):  # it is awake already, or has ended
            self._writer.send(b".")

    def stop(self, *, timeout_seconds: float = 10) -> None:
        """End the thread; one that was never started may be stopped as well."""
        self._stopping.set()
        self.wake()
        if self.is_alive():
            self.join(timeout_seconds)
        if not self.is_alive():
            self._reader.close()
            self._writer.close()

    def wait(self, connection: Connection, seconds: float) -> bool:
        """Wait until PostgreSQL notifies, or this thread is woken or stopped, at most so long; whether it notified.

        Raises psycopg2's Error at once if the connection is cut.
        """
        is_notified = wait_for_notification(connection, seconds, self._reader)
        with suppress(BlockingIOError):
            self._reader.recv(4096)
        return is_notified


def wait_for_notification(connection: Connection, seconds: float, *others: socket.socket) -> bool:
    """Wait until PostgreSQL notifies or one of ``others`` can be read, at most so long; whether PostgreSQL notified.

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
