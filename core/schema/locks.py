"""Waits in short periods for the locks of a schema change, and reports which sessions hold them.

While a statement waits for a table, every later statement on that table waits too. So the change gives up after
``LOCK_TIMEOUT_SECONDS``, and the other statements run. Then the whole change is tried again. Another connection asks
PostgreSQL which sessions hold the locks. Queries are never shown, since their values may be personal data.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from psycopg2.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from core import database
from core.errors import PluginError
from core.ledger.processes import LOCK_SPACE, MIGRATION_LOCK

T = TypeVar("T")

#: One try to lock a table may block other sessions for this many seconds.
LOCK_TIMEOUT_SECONDS = 2.0
#: The number of tries.
TRIES = 10
#: The wait between two tries, in seconds.
PAUSE_SECONDS = 3.0
#: How often to ask for the holders of locks, in seconds.
LOOK_SECONDS = 0.2

#: Only one schema change runs at a time. Nothing else waits for this lock, so a change may wait for it as long as the
#: other change takes.
ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(:space, :lock)")
LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :milliseconds, true)")

BLOCKERS = text("""
    SELECT blocker.pid, activity.application_name AS application, activity.usename AS role, activity.state,
           activity.xact_start AS since
    FROM unnest(pg_blocking_pids(:pid)) AS blocker (pid) LEFT JOIN pg_stat_activity AS activity USING (pid)
    ORDER BY activity.xact_start NULLS LAST, blocker.pid
""")


@dataclass(frozen=True, slots=True)
class Blocker:
    """A session that holds a lock that the change needs, or waits for it before the change."""

    #: The id of the session's server process; 0 for a prepared transaction, which has no process.
    pid: int
    application: str | None
    role: str | None
    state: str | None
    since: datetime | None

    def __str__(self) -> str:
        if not self.pid:
            return "a prepared transaction (see pg_prepared_xacts)"
        since = f" since {self.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        name, state = self.application or "no name", self.state or "at work"
        return f"process {self.pid} ({name!r} of {self.role}, {state}{since})"


class LocksHeld(PluginError):
    """Other sessions held the locks of a schema change for too long. Nothing was changed."""


def silent(_message: str) -> None:
    """Ignore the message."""


def patiently(engine: Engine, change: Callable[[Connection], T], what: str, say: Callable[[str], None] = silent) -> T:
    """Run ``change`` in a transaction, and try again while other sessions hold its locks.

    Return the result of ``change``.

    ``say`` is called with the holders of locks as soon as they are known. Raises LocksHeld after about a minute, and
    any other error of ``change`` at once.
    """
    watch = Watch(engine, what, say)
    for number in range(TRIES):
        try:
            with engine.begin() as connection, watch.beside(connection):
                connection.execute(ONE_AT_A_TIME, {"space": LOCK_SPACE, "lock": MIGRATION_LOCK})
                connection.execute(LOCK_TIMEOUT, {"milliseconds": str(int(LOCK_TIMEOUT_SECONDS * 1000))})
                return change(connection)
        except Exception as error:
            if not is_locked_out(error):
                raise
            if number == TRIES - 1:
                raise LocksHeld(watch.verdict()) from error
        time.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")


def is_locked_out(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, is a lock time-out or a deadlock."""
    while error is not None:
        if isinstance(getattr(error, "orig", None), LockNotAvailable | DeadlockDetected):
            return True
        error = error.__cause__
    return False


class Watch:
    """Asks for the holders of locks on another connection."""

    def __init__(self, engine: Engine, what: str, say: Callable[[str], None]) -> None:
        self._engine = engine
        self._what = what
        self._say = say
        self._last: tuple[Blocker, ...] = ()
        self._said: set[int] = set()

    @contextmanager
    def beside(self, connection: Connection) -> Iterator[None]:
        """Watch while the caller works on ``connection``."""
        pid = connection.connection.dbapi_connection.get_backend_pid()  # type: ignore[union-attr]
        ended = threading.Event()
        thread = threading.Thread(target=self._look, args=(pid, ended), name="rota-locks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def verdict(self) -> str:
        """Return a message that names the last known holders of the locks and says what to do."""
        who = ", ".join(map(str, self._last)) or "a session that has ended since"
        pids = [each.pid for each in self._last if each.pid]
        end = f", or end the session with SELECT pg_terminate_backend({pids[0]})" if pids else ""
        return f"{self._what}: locked by {who}; nothing was changed. Wait until the locks are free{end}, and try again"

    def _look(self, pid: int, ended: threading.Event) -> None:
        try:
            with database.dedicated(self._engine) as connection:
                while not ended.wait(LOOK_SECONDS):
                    found = tuple(Blocker(*row) for row in connection.execute(BLOCKERS, {"pid": pid}))
                    self._last = found or self._last
                    self._tell(found)
        except SQLAlchemyError:
            return  # the change itself fails with the same error, or needs no report

    def _tell(self, found: tuple[Blocker, ...]) -> None:
        for each in found:
            if each.pid not in self._said:
                self._said.add(each.pid)
                self._say(f"{self._what}: waiting for {each}")
