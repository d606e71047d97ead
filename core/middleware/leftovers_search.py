"""Requests a search for leftovers in Redis when a worker has started."""

from dramatiq.broker import Broker
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker
from sqlalchemy import Engine

from core import database
from core.jobs.registry import Registry
from core.observability.events import LeftoversNotSearched, emit
from core.operations import leftovers
from core.worker.heartbeat import Heartbeat


class LeftoversSearch(Middleware):
    """Requests a run of ``clean-redis`` after the worker has registered, unless PostgreSQL is away."""

    def __init__(self, engine: Engine, registry: Registry, heartbeat: Heartbeat) -> None:
        self._engine = engine
        self._registry = registry
        self._heartbeat = heartbeat

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Request the run, if this process has registered."""
        if not self._heartbeat.registered.is_set():
            return
        try:
            with self._engine.begin() as connection:
                leftovers.request_search(connection, self._registry)
        except database.DATABASE_AWAY as error:
            emit(LeftoversNotSearched(database.brief(error)))
