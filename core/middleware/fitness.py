"""Before a worker takes its first message, ends the process if it can never work with its servers."""

from dramatiq.broker import Broker
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.worker.fitness import Fitness


class FitServers(Middleware):
    """Checks the servers when the worker starts."""

    def __init__(self, fitness: Fitness) -> None:
        self._fitness = fitness

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Check the servers. Raises SystemExit, since Dramatiq would only log an Exception and continue."""
        self._fitness.refuse_unfit()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop checking."""
        self._fitness.stop()
