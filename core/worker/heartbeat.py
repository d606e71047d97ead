"""One thread per process keeps the process known to the ledger, and thereby all its leases good."""

import logging
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import psycopg2
from psycopg2.errors import UndefinedColumn, UndefinedTable
from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from core import database
from core.ledger import processes, releases, runs
from core.ledger.processes import Identity
from core.ledger.releases import Release
from core.observability import metrics
from core.observability.logs import LogOnce

logger = logging.getLogger(__name__)

#: How long to wait before registering is tried again, in seconds.
REGISTER_AGAIN_SECONDS = 0.5
#: A claim is known to whoever made it within this, in seconds; longer than a connection waits for an answer.
#: So often it is looked for claims that nobody knows of.
FORGOTTEN_SECONDS = 15.0


def process_name() -> str:
    """This process, for people: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def application_name() -> str:
    """What this process calls its connections: unlike a pid it is never used twice. At most 63 bytes."""
    return f"rota:{os.getpid()}:{secrets.token_hex(8)}"


class Heartbeat(threading.Thread):
    """Registers the process, renews its leases, and registers anew when they were lost.

    ``process_id`` is None while the process may not claim. Losing it ends nothing here: the runs that were claimed
    under it can no longer commit. A connection that is cut is noticed at once, and the process goes on as itself on
    another, unless its leases have expired or PostgreSQL was restarted.
    """

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        *,
        every_seconds: float,
        lease: timedelta,
        release: Release | None = None,
        in_hand: set[int] | None = None,
    ) -> None:
        """``in_hand``: the tokens of the leases that this process knows it has; None: it does not say."""
        super().__init__(name="rota-heartbeat", daemon=True)
        self.registered = threading.Event()
        #: Called whenever the process has become known.
        self.on_registered: Callable[[], None] = lambda: None
        self._engine = engine
        self._release = release
        self._identity = replace(identity, release=release.fingerprint if release else None)
        self._every_seconds = every_seconds
        self._lease = lease
        self._in_hand = in_hand
        self._looked_at = 0.0
        self._stopping = threading.Event()
        self._log_once = LogOnce(logger)
        #: Under which id this process was registered last; runs may still be claimed under it.
        self._last_id: int | None = None
        #: Until when its leases are good, at least, by this process's monotonic clock.
        self._good_until = 0.0
        self._reader, self._writer = socket.socketpair()

    @property
    def process_id(self) -> int | None:
        """This process's id in the ledger, while its leases may be good."""
        return self._last_id if time.monotonic() < self._good_until else None

    def run(self) -> None:
        """Stay registered until stopped."""
        while not self._stopping.is_set():
            try:
                self._stay_registered()
            except (DBAPIError, PoolTimeout, psycopg2.Error) as error:
                self._complain(error)
            except Exception:  # a background loop outlives its errors
                logger.exception("process.not_registered: going on")
            was_registered = self.registered.is_set()
            self.registered.clear()
            self._stopping.wait(0 if was_registered else REGISTER_AGAIN_SECONDS)

    def stop(self, *, timeout_seconds: float = 10) -> None:
        """Hand back what still runs, and leave."""
        self._stopping.set()
        with suppress(OSError):  # it was stopped before
            self._writer.send(b".")
        if self.is_alive():
            self.join(timeout_seconds)
        if not self.is_alive():
            self._reader.close()
            self._writer.close()

    def _stay_registered(self) -> None:
        with database.dedicated(self._engine) as connection:
            if not self._has_resumed(connection):
                self._register(connection)
            self.registered.set()
            self.on_registered()
            self._log_once.reset()
            assert self._last_id is not None
            self._beat(connection, self._last_id)

    def _has_resumed(self, connection: Connection) -> bool:
        now = time.monotonic()
        if self._last_id is None or not processes.resume(connection, self._last_id, self._lease):
            return False
        self._good_until = now + self._lease.total_seconds()
        logger.info("process.resumed kind=%s id=%s: its connection was cut", self._identity.kind, self._last_id)
        return True

    def _register(self, connection: Connection) -> None:
        if self._release is not None:  # first, so that nobody sees a process of a release that is not there
            releases.record(connection, self._release)
        now, former = time.monotonic(), self._last_id
        self._last_id = processes.register(connection, self._identity, self._lease)
        self._good_until = now + self._lease.total_seconds()
        logger.info("process.registered kind=%s id=%s", self._identity.kind, self._last_id)
        if former is not None:
            self._hand_back(connection, former, "its worker lost PostgreSQL")

    def _beat(self, connection: Connection, process_id: int) -> None:
        while not self._is_stopped_within(connection, self._every_seconds):
            now = time.monotonic()
            if not processes.renew(connection, process_id, self._lease):
                logger.warning("process.expired id=%s: its leases are lost, registering anew", process_id)
                self._good_until = 0.0
                return
            self._good_until = now + self._lease.total_seconds()
            self._measure_pool()
            self._look_for_forgotten(connection, process_id)
        self._good_until = 0.0
        self._hand_back(connection, process_id, "its worker was stopped")

    def _is_stopped_within(self, connection: Connection, seconds: float) -> bool:
        """Wait, at most so long, to be stopped. Raises psycopg2's Error at once if the connection is cut."""
        driver: DriverConnection = connection.connection.dbapi_connection  # type: ignore[assignment]
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (remaining := until - time.monotonic()) > 0:
            readable, _, _ = select.select([driver.fileno(), self._reader.fileno()], [], [], remaining)
            if readable:
                driver.poll()
        return self._stopping.is_set()

    def _look_for_forgotten(self, connection: Connection, process_id: int) -> None:
        """Hand back runs that are this process's and that no thread of it works on."""
        if self._in_hand is None or time.monotonic() < self._looked_at + FORGOTTEN_SECONDS:
            return
        self._looked_at = time.monotonic()
        age = max(self._lease, timedelta(seconds=FORGOTTEN_SECONDS))
        tokens = self._in_hand.copy()
        forgotten = runs.release_forgotten(connection, process_id, tokens, age, "its worker had lost sight of it")
        if forgotten:
            logger.warning("run.forgotten runs=%s: claimed here, and nobody works on them; handed back", forgotten)

    def _hand_back(self, connection: Connection, process_id: int, reason: str) -> None:
        released = runs.release(connection, process_id, reason)
        if released:
            logger.info("process.handed_back runs=%s", released)
        processes.resign(connection, process_id)

    def _measure_pool(self) -> None:
        pool = self._engine.pool
        if isinstance(pool, QueuePool):
            metrics.pool(in_use=pool.checkedout(), idle=pool.checkedin())

    def _complain(self, error: DBAPIError | PoolTimeout | psycopg2.Error) -> None:
        reason = "the database is not migrated, run `rota db upgrade`"
        if not isinstance(getattr(error, "orig", error), UndefinedColumn | UndefinedTable):
            reason = database.brief(error)
        self._log_once.error(f"process.not_registered: {reason}; trying again")
