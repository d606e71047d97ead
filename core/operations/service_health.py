"""The health of the whole service for ``/health``: PostgreSQL, Redis, the workers and the scheduler.

Each server is asked by a ``Probe``, so that a server that hangs does not make the answer hang too. The caller waits for
the probes for a limited time, and then calls ``Watch.health``. If a probe has no answer by then, its server counts as
unavailable.
"""

import socket
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine

from core import database
from core.clock import Clock, system_clock
from core.ledger import history
from core.ledger.history import Process
from core.operations import redis_fitness
from core.operations.json_shape import Shape
from core.operations.probe import Probe
from core.operations.wording import local
from core.settings import Settings

#: A caller waits this long for the answers of the servers. ``/health`` promises an answer within 2 seconds.
PATIENCE_SECONDS = 1.5
#: A process is silent if its last heartbeat is older than this many intervals of ``ROTA_HEARTBEAT_SECONDS``. With the
#: default of 3 seconds, a heartbeat may be 1.5 seconds late, and a frozen process is reported within 5 seconds,
#: including the time for which an answer is cached.
SILENT_AFTER_HEARTBEATS = 1.5
#: PostgreSQL is asked for the processes again after this time.
FRESH_SECONDS = 0.3
#: If a kind of process is missing, the last process of that kind is named if it left within this time.
LEFT_WITHIN = timedelta(hours=24)

Part = Literal["database", "redis", "worker", "scheduler"]


class Health(Shape):
    """The health of the service. For each part that is wrong, ``reasons`` says why and since when."""

    status: Literal["healthy", "unhealthy"]
    database: Literal["connected", "disconnected"]
    redis: Literal["connected", "disconnected", "not used"]
    #: ``unknown`` while PostgreSQL, which has the list of processes, cannot be asked.
    worker: Literal["available", "unavailable", "unknown"]
    scheduler: Literal["available", "unavailable", "unknown"] | None = None
    reasons: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Processes:
    """The reason why there is no worker, and the reason why there is no scheduler. A reason is empty if there is
    one.
    """

    worker: str
    scheduler: str


class Watch:
    """Asks the servers, and remembers since when a part is wrong."""

    def __init__(
        self,
        engine: Engine,
        configured: Settings,
        *,
        clock: Clock = system_clock,
        mine: Callable[[], Collection[str]] | None = None,
    ) -> None:
        """``mine`` returns the names of the processes of one worker.

        If ``mine`` is given, only these processes count, and no scheduler is needed.
        """
        self._configured = configured
        self._clock = clock
        self._mine = mine
        self._database = Probe(
            "rota-health-postgresql", lambda: look_at_ledger(engine, configured, mine), fresh_seconds=FRESH_SECONDS
        )
        self._redis = Probe("rota-health-redis", lambda: look_at_redis(configured))
        self._since: dict[Part, datetime] = {}

    def ask(self) -> Sequence["Future[Any]"]:
        """Ask the servers. An answer may be pending for as long as its server hangs."""
        return [self._database.ask(), *([] if self._is_local else [self._redis.ask()])]

    def health(self) -> Health:
        """Return the health according to the answers to the last ``ask``, as far as they have arrived."""
        found, wrong = self._processes(), self._redis_problem()
        reasons = self._dated(
            {
                "database": found if isinstance(found, str) else "",
                "redis": wrong,
                "worker": found.worker if isinstance(found, Processes) else "",
                "scheduler": found.scheduler if isinstance(found, Processes) and self._mine is None else "",
            }
        )
        known = isinstance(found, Processes)
        return Health(
            status="unhealthy" if reasons else "healthy",
            database="connected" if known else "disconnected",
            redis="not used" if self._is_local else "disconnected" if wrong else "connected",
            worker="unavailable" if "worker" in reasons else "available" if known else "unknown",
            scheduler=self._scheduler(known=known, is_away="scheduler" in reasons),
            reasons=reasons or None,
        )

    @property
    def _is_local(self) -> bool:
        return self._configured.mode == "local"

    def _scheduler(self, *, known: bool, is_away: bool) -> Literal["available", "unavailable", "unknown"] | None:
        if self._mine is not None:
            return None
        return "unavailable" if is_away else "available" if known else "unknown"

    def _processes(self) -> Processes | str:
        asked = self._database.newest()
        if not asked.done():
            return "PostgreSQL does not answer"
        error = asked.exception()
        return asked.result() if error is None else f"PostgreSQL cannot be used: {database.brief(error)}"

    def _redis_problem(self) -> str:
        if self._is_local:
            return ""
        asked = self._redis.newest()
        if not asked.done():
            return "Redis does not answer"
        error = asked.exception()
        return asked.result() if error is None else f"Redis cannot be used: {type(error).__name__}"

    def _dated(self, found: dict[Part, str]) -> dict[str, str]:
        """Return the parts in ``found`` that are wrong, each with the time at which this process saw it first."""
        wrong = {part: reason for part, reason in found.items() if reason}
        now = self._clock()
        self._since = {part: self._since.get(part, now) for part in wrong}
        return {
            part: f"{reason} (seen since {self._since[part]:%Y-%m-%d %H:%M:%S} UTC)" for part, reason in wrong.items()
        }


def look_at_ledger(engine: Engine, configured: Settings, mine: Callable[[], Collection[str]] | None) -> Processes:
    """Return why there is no worker, and why there is no scheduler. Raises SQLAlchemy's DBAPIError."""
    with engine.connect() as connection:
        now, alive = history.now(connection), history.alive(connection)
        if mine is not None:
            names = mine()
            alive = [process for process in alive if process.name in names]
        awake = [process for process in alive if not is_silent(process, now, configured)]
        return Processes(
            worker=missing(connection, "worker", alive, awake, now, configured),
            scheduler=missing_scheduler(connection, alive, awake, now, configured),
        )


def is_silent(process: Process, now: datetime, configured: Settings) -> bool:
    """Return whether the last heartbeat of a live process is too old."""
    return silent_seconds(process, now, configured) > SILENT_AFTER_HEARTBEATS * configured.heartbeat_seconds


def silent_seconds(process: Process, now: datetime, configured: Settings) -> float:
    """Return the age of the last heartbeat of ``process``, which must have the same lease length as this process."""
    return (now - process.expires_at).total_seconds() + configured.lease_seconds


def missing_scheduler(
    connection: Connection, alive: Sequence[Process], awake: Sequence[Process], now: datetime, configured: Settings
) -> str:
    """Return why there is no scheduler, or an empty text. In local mode the dispatcher is the scheduler."""
    if configured.mode != "local":
        return missing(connection, "scheduler", alive, awake, now, configured)
    is_there = any(process.kind == "worker" for process in awake) and history.is_dispatching(connection)
    return "" if is_there else "no dispatcher leads; it is the scheduler in local mode; start `rota worker`"


def missing(
    connection: Connection,
    kind: str,
    alive: Sequence[Process],
    awake: Sequence[Process],
    now: datetime,
    configured: Settings,
) -> str:
    """Return why there is no process of ``kind``, or an empty text."""
    if any(process.kind == kind for process in awake):
        return ""
    silent = [process for process in alive if process.kind == kind]
    if silent:
        last = min(silent, key=lambda process: silent_seconds(process, now, configured))
        seconds = silent_seconds(last, now, configured)
        return f"no {kind} sends heartbeats; {last.name} sent its last one {seconds:.0f} s ago"
    if any(process.kind == "stuck" for process in alive) and kind == "worker":
        return "the worker processes make no progress; see the event process.stuck in their log"
    return f"no {kind} is alive{last_that_left(connection, kind)}"


def last_that_left(connection: Connection, kind: str) -> str:
    """Return ``; HOST:PID left at …: died`` for the last process of ``kind`` that left in the last 24 hours."""
    for row in history.departures(connection, LEFT_WITHIN, 100):
        if row.kind == kind:
            return f"; {row.name} left at {local(row.left_at)}: {row.reason}"
    return ""


def look_at_redis(configured: Settings) -> str:
    """Return why Redis cannot carry messages, or an empty text if it can."""
    answer = redis_fitness.reachable(configured, "check that it is running, and that REDIS_URL is right")
    return f"{answer.found}; {answer.advice}" if answer.outcome == "wrong" else ""


def this_host(pids: Collection[int]) -> set[str]:
    """Return the names that the processes ``pids`` of this host have in the ledger."""
    return {f"{socket.gethostname()}:{pid}" for pid in pids}
