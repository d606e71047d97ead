"""Makes Dramatiq fork the process that serves ``/metrics`` and ``/health``."""

from typing import Any

from dramatiq.middleware import Middleware

from core.worker import metrics_port


class MetricsServer(Middleware):
    """Tells Dramatiq to fork a process that serves the metrics and the health, unless ``port`` is 0."""

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def forks(self) -> list[Any]:
        """The functions for which Dramatiq's main process forks a process."""
        return [metrics_port.serve] if self._port else []
