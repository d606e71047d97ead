"""Watches Redis for as long as a worker works."""

from typing import Any

from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.transport.redis import RedisWatch


class Watching(Middleware):
    """Starts and stops the watch with the worker."""

    def __init__(self, watch: RedisWatch) -> None:
        self._watch = watch

    def before_worker_boot(self, broker: Any, worker: Worker) -> None:
        """Ask from now on, and thereby look for messages."""
        self._watch.start()
        broker.wakeups.is_looked_for = True

    def after_worker_shutdown(self, broker: Any, worker: Worker) -> None:
        """Nobody wants to know any more."""
        broker.wakeups.is_looked_for = False
        self._watch.stop()
