"""Makes Dramatiq fork the process that serves ``/metrics``."""

from typing import Any

from dramatiq.middleware import Middleware

from core.observability import metrics_server


class MetricsServer(Middleware):
    """Tells Dramatiq to fork a process that serves the metrics, unless ``port`` is 0."""

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def forks(self) -> list[Any]:
        """The functions for which Dramatiq's main process forks a process."""
        return [metrics_server.serve] if self._port else []
