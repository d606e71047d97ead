"""A worker process's life: it registers with the ledger, dispatches, and leaves in good order."""

from collections.abc import Callable
from typing import Any

from dramatiq.broker import Broker
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.dispatcher.loop import Dispatcher
from core.transport.redis import RotaBroker
from core.worker import isolation
from core.worker.heartbeat import Heartbeat
from core.worker.watchdog import Watchdog


class ProcessLife(Middleware):
    """Starts heartbeat, dispatcher and watchdog with the worker, and ends them after it."""

    def __init__(
        self,
        make_heartbeat: Callable[[tuple[str, ...]], Heartbeat],
        make_dispatcher: Callable[[], Dispatcher],
        make_watchdog: Callable[[], Watchdog],
        *,
        record_the_rest: Callable[[], None] = lambda: None,
    ) -> None:
        self._make_heartbeat = make_heartbeat
        self._make_dispatcher = make_dispatcher
        self._make_watchdog = make_watchdog
        self._record_the_rest = record_the_rest
        self._watchdog: Watchdog | None = None
        self.heartbeat: Heartbeat | None = None
        self.dispatcher: Dispatcher | None = None

    @property
    def process_id(self) -> int | None:
        """This process's id in the ledger, while it has one."""
        return self.heartbeat.process_id if self.heartbeat else None

    @property
    def is_registered(self) -> bool:
        """Whether it has one, and the connection that shows that it lives."""
        return self.heartbeat is not None and self.heartbeat.registered.is_set()

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Register before the first message is fetched; without PostgreSQL, go on trying."""
        queues: Any = worker.consumer_whitelist or broker.get_declared_queues()
        self.heartbeat = self._make_heartbeat(tuple(sorted(queues)))
        self.dispatcher = self._make_dispatcher()
        if isinstance(broker, RotaBroker):
            self.heartbeat.on_registered = broker.wakeups.wake_all
        self.heartbeat.start()
        self.heartbeat.registered.wait(timeout=2)
        self.dispatcher.start()
        self._watchdog = self._make_watchdog()  # last, since a machine without room for it costs us no more then
        self._watchdog.start()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """The threads have ended, or their time is up: record what they have done, and hand back what is left."""
        self._record_the_rest()
        if self.dispatcher is not None:
            self.dispatcher.stop()
        if self.heartbeat is not None:
            self.heartbeat.stop()
        isolation.end_all()
        if self._watchdog is not None:
            self._watchdog.stop()
