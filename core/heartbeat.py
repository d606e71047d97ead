"""One thread per process keeps the process known to the ledger, and thereby all its leases good."""

import logging
import os
import secrets
import socket
import threading
from dataclasses import replace
from datetime import timedelta

from psycopg2.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from core import database, metrics
from core.ledger import processes, releases, runs
from core.ledger.processes import Identity
from core.ledger.releases import Release
from core.logs import Complaint

logger = logging.getLogger(__name__)

#: How long to wait before registering is tried again, in seconds.
REGISTER_AGAIN_SECONDS = 1.0


def process_name() -> str:
    """This process, for people: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def application_name() -> str:
    """What this process calls its connections: unlike a pid it is never used twice. At most 63 bytes."""
    return f"rota:{os.getpid()}:{secrets.token_hex(8)}"


class Heartbeat(threading.Thread):
    """Registers the process, renews its leases, and registers anew when they were lost.

    ``process_id`` is None while the process may not claim. Losing it ends nothing here: the runs that were claimed
    under it can no longer commit.
    """

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        *,
        every_seconds: float,
        lease: timedelta,
        release: Release | None = None,
    ) -> None:
        super().__init__(name="rota-heartbeat", daemon=True)
        self.process_id: int | None = None
        self.registered = threading.Event()
        self._engine = engine
        self._release = release
        self._identity = replace(identity, release=release.fingerprint if release else None)
        self._every_seconds = every_seconds
        self._lease = lease
        self._stopping = threading.Event()
        self._complaint = Complaint(logger)
        #: Under which id this process was registered last; runs may still be claimed under it.
        self._former_id: int | None = None

    def run(self) -> None:
        """Stay registered until stopped."""
        while not self._stopping.is_set():
            try:
                self._stay_registered()
            except (DBAPIError, PoolTimeout) as error:
                self._complain(error)
            except Exception:  # a background loop outlives its errors
                logger.exception("process.not_registered: going on")
            self.process_id = None
            self.registered.clear()
            self._stopping.wait(REGISTER_AGAIN_SECONDS)

    def stop(self, *, timeout_seconds: float = 10) -> None:
        """Hand back what still runs, and leave."""
        self._stopping.set()
        if self.is_alive():
            self.join(timeout_seconds)

    def _stay_registered(self) -> None:
        with database.dedicated(self._engine) as connection:
            if self._release is not None:  # first, so that nobody sees a process of a release that is not there
                releases.record(connection, self._release)
            former, self.process_id = self._former_id, processes.register(connection, self._identity, self._lease)
            self._former_id = process_id = self.process_id
            self.registered.set()
            self._complaint.withdraw()
            logger.info("process.registered kind=%s id=%s", self._identity.kind, process_id)
            if former is not None:
                self._hand_back(connection, former, "its worker lost PostgreSQL")
            self._beat(connection, process_id)

    def _beat(self, connection: Connection, process_id: int) -> None:
        while not self._stopping.wait(self._every_seconds):
            if not processes.renew(connection, process_id, self._lease):
                logger.warning("process.expired id=%s: its leases are lost, registering anew", process_id)
                return
            self._measure_pool()
        self._hand_back(connection, process_id, "its worker was stopped")

    def _hand_back(self, connection: Connection, process_id: int, reason: str) -> None:
        handed_back = runs.hand_back(connection, process_id, reason)
        if handed_back:
            logger.info("process.handed_back runs=%s", handed_back)
        processes.resign(connection, process_id)

    def _measure_pool(self) -> None:
        pool = self._engine.pool
        if isinstance(pool, QueuePool):
            metrics.pool(in_use=pool.checkedout(), idle=pool.checkedin())

    def _complain(self, error: DBAPIError | PoolTimeout) -> None:
        reason = "the database is not migrated, run `rota db upgrade`"
        if not isinstance(getattr(error, "orig", None), UndefinedColumn | UndefinedTable):
            reason = database.brief(error)
        self._complaint.say(f"process.not_registered: {reason}; trying again every second")
