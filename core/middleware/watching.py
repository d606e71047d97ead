"""Watches Redis for as long as a worker works."""

from dramatiq.broker import Broker
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.redis_broker import RedisWatch


class Watching(Middleware):
    """Starts and stops the watch with the worker."""

    def __init__(self, watch: RedisWatch) -> None:
        self._watch = watch

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Ask from now on."""
        self._watch.start()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Nobody wants to know any more."""
        self._watch.stop()
