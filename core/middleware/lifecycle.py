"""Starts and ends the background threads of a worker process: heartbeat, dispatcher, watchdog and watch of Redis."""

from typing import Any

from dramatiq.broker import Broker
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core import forks
from core.dispatcher.loop import Dispatcher
from core.transport.redis import RedisWatch, RotaBroker
from core.worker import interruption, isolation
from core.worker.completions import Completions
from core.worker.heartbeat import Heartbeat
from core.worker.watchdog import Watchdog

#: The longest wait for the registration of the process before the first message is fetched, in seconds.
REGISTER_SECONDS = 2.0


class Lifecycle(Middleware):
    """Starts the background threads with the worker, and ends them after the worker's threads have ended."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        dispatcher: Dispatcher,
        watchdog: Watchdog,
        completions: Completions | None = None,
        *,
        watch: RedisWatch | None = None,
    ) -> None:
        """``watch`` checks whether Redis is usable. It is None in a mode that does not continue without Redis."""
        self._heartbeat = heartbeat
        self._dispatcher = dispatcher
        self._watchdog = watchdog
        self._completions = completions
        self._watch = watch

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start the threads, and wait a short time until the process is registered."""
        interruption.start()  # if this fails, the process ends now and not in its first run
        queues: Any = worker.consumer_whitelist or broker.get_declared_queues()
        if self._watch is not None:
            self._watch.start()
        if isinstance(broker, RotaBroker):
            wake = broker.wakeups.wake_all
            self._heartbeat.start(sorted(queues), broker.broker_id, threads=worker.worker_threads, on_registered=wake)
        else:
            self._heartbeat.start(sorted(queues), threads=worker.worker_threads)
        self._heartbeat.registered.wait(REGISTER_SECONDS)
        self._dispatcher.start()
        self._watchdog.start()  # last, so that the other parts work if there is not enough memory for another process
        forks.begin()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Record waiting outcomes and release the remaining runs, after the threads have ended or the grace is over."""
        forks.end()
        if self._completions is not None:
            self._completions.stop()
        self._dispatcher.stop()
        self._heartbeat.stop()
        isolation.end_all()
        self._watchdog.stop()
        if self._watch is not None:
            self._watch.stop()
