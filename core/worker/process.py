"""Creates the parts of a worker process, for any broker. ``core/main.py`` and ``local.py`` connect the parts."""

import math
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

import redis
from sqlalchemy import Engine

from core import database, settings
from core.dispatcher.loop import REDIS_LOST_SECONDS, Dispatcher
from core.dispatcher.recovery import Outage
from core.errors import RotaError, suggestion
from core.jobs.registry import Registry, words_on_grace
from core.ledger import releases
from core.ledger.carrier import Carrier, DispatchCarrier
from core.ledger.processes import Identity
from core.ledger.releases import Fleet
from core.middleware.recycling import RecyclingLimits
from core.observability import logs, metrics
from core.observability.events import JobOutlivesItsRuns, ReservationUnused, SettingUnknown, emit
from core.plugins import loading, unread_settings
from core.settings import Settings
from core.transport.reservations import Reservation, reservations
from core.worker.completions import Completions
from core.worker.executor import Executor
from core.worker.fitness import Fitness
from core.worker.heartbeat import Heartbeat
from core.worker.ledger_feed import LedgerFeed
from core.worker.membership import Membership, application_name, process_name
from core.worker.watchdog import Watchdog


@dataclass(frozen=True)
class WorkerProcess:
    """Makes the parts of this process from its settings and its jobs. Does not connect to a server."""

    configured: Settings
    registry: Registry
    #: The name of this process's connections in PostgreSQL.
    application: str = field(default_factory=application_name)

    @cached_property
    def engine(self) -> Engine:
        """The database engine that all parts of this process share."""
        url = self.configured.database_url.get_secret_value()
        return database.connect(url, pool_size=self.configured.db_pool_size, application=self.application)

    @cached_property
    def outage(self) -> Outage:
        """Remembers when a thread of this process last noticed that PostgreSQL was unavailable or stalled."""
        return Outage(stall_seconds=self.configured.lease_seconds / 3)

    def heartbeat(self, kind: str) -> Heartbeat:
        """Return the heartbeat, which registers this process as a process of ``kind``."""
        return Heartbeat(
            self.engine,
            Identity(kind, process_name(), self.application, reserved=self.reserved_threads),
            every_seconds=self.configured.heartbeat_seconds,
            lease=timedelta(seconds=self.configured.lease_seconds),
            release=releases.of(self.registry),
            outage=self.outage,
        )

    def dispatcher(self, carrier: DispatchCarrier) -> Dispatcher:
        """Return a dispatcher that sends runs by ``carrier``."""
        return Dispatcher(
            self.engine,
            self.registry,
            carrier,
            every_seconds=self.configured.dispatch_seconds,
            resend_seconds=self.configured.resend_seconds,
            max_crashes=self.configured.max_crashes,
            orphan_seconds=self.configured.orphan_seconds,
            # In local mode there is no Redis, so a leader must not step down because Redis is away.
            redis_lost_seconds=math.inf if self.configured.mode == "local" else REDIS_LOST_SECONDS,
            outage=self.outage,
        )

    def fitness(self, client: redis.Redis | None = None) -> Fitness:
        """Return the check that refuses servers with which this process can never work.

        ``client`` must fail within about a second.
        """
        return Fitness(self.engine, client, self.registry)

    def watchdog(self) -> Watchdog:
        """Return the watchdog, which ends this process if a job blocks it for longer than a lease."""
        return Watchdog(self.configured.lease_seconds)

    def ledger_feed(self, carrier: Carrier) -> LedgerFeed:
        """Return the feed, which takes runs from the ledger while ``carrier`` cannot send them."""
        return LedgerFeed(
            self.engine,
            carrier,
            scopes=self.registry.scopes,
            every_seconds=self.configured.dispatch_seconds,
            resend_seconds=self.configured.resend_seconds,
        )

    @property
    def reserved(self) -> dict[str, Reservation]:
        """The number of reserved threads by queue, for queues that a loaded job uses."""
        return reservations(settings.split_reservations(self.configured.reserved_threads), self.registry)

    @property
    def reserved_threads(self) -> dict[str, int]:
        """The numbers of reserved threads alone."""
        return {queue: each.threads for queue, each in self.reserved.items()}

    @property
    def recycling_limits(self) -> RecyclingLimits:
        """The limits after which this process is replaced."""
        return RecyclingLimits(
            self.configured.max_messages, self.configured.max_memory_mb, self.configured.min_process_seconds
        )

    def executor(self, membership: Membership, completions: Completions | None = None) -> Executor:
        """Return the executor, which takes a run from its claim to its end.

        ``completions`` records successes in batches.
        """
        suspected_after = max(self.configured.max_crashes - 1, 1)
        return Executor(
            self.engine, membership, process_name(), suspected_after=suspected_after, completions=completions
        )

    def fits_elsewhere(self, job: str, queue: str, refused: Collection[str]) -> bool:
        """Return whether a live worker of ``queue`` may have ``job`` in a form that is not in ``refused``.

        ``refused`` are the forms whose parameters a message's arguments did not fit. Raises SQLAlchemy's DBAPIError.
        """
        with database.autocommit(self.engine) as connection:
            return releases.fits_elsewhere(connection, job, queue, refused)

    def fleet(self) -> Fleet:
        """Return the jobs of all live processes. Raises SQLAlchemy's DBAPIError."""
        with database.autocommit(self.engine) as connection:
            return releases.fleet(connection)


def gather() -> WorkerProcess:
    """Read the settings and load the plugins. An error ends the process with a clear message."""
    try:
        configured = settings.current()
        if logs.is_ours():
            logs.configure(configured.log_format, configured.log_level)
        metrics.share(configured.metrics_dir)
        registry = loading.current()
        refuse_broken(registry, strict=configured.strict_plugins)
    except RotaError as error:
        sys.exit(f"rota: {error}")
    for plugin in registry.plugins:
        if not plugin.is_disabled:
            metrics.plugin(plugin.name, is_up=not plugin.error)
    warn(configured, registry)
    return WorkerProcess(configured, registry)


def warn(configured: Settings, registry: Registry) -> None:
    """Log problems that do not stop the process."""
    for left in unread_settings.variables(os.environ, registry):
        emit(SettingUnknown(left.variable, left.why))
    queues = {job.queue for job in registry}
    for queue in settings.split_reservations(configured.reserved_threads).keys() - queues:
        emit(ReservationUnused(queue, suggestion(queue, queues)))
    for job in registry.outliving(timedelta(days=configured.retention_days)):
        emit(JobOutlivesItsRuns(job.name, words_on_grace(job, configured.retention_days)))


def refuse_broken(registry: Registry, *, strict: bool) -> None:
    """Raise RotaError for broken plugins if ``strict``, the setting ROTA_STRICT_PLUGINS."""
    broken = [f"  {plugin.name}: {plugin.error}" for plugin in registry.broken()]
    if strict and broken:
        raise RotaError("ROTA_STRICT_PLUGINS is set, and plugins are broken:\n" + "\n".join(broken))
