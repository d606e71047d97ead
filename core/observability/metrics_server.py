"""Serves ``/metrics`` and ``/health`` for all processes of one worker, in a process of its own."""

import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from core import settings
from core.observability import logs, metric_files, metrics
from core.observability.events import MetricsNotServed, MetricsServing, emit

#: The wait before an occupied port is tried again, in seconds.
BIND_AGAIN_SECONDS = 5.0

_collecting = threading.Lock()


#: Returns whether the worker is healthy, and its health as JSON.
Health = Callable[[], tuple[bool, bytes]]


def serve(health: Health | None = None) -> int:
    """Serve until stopped. An occupied port is logged once and tried again."""
    configured = settings.current()
    logs.configure(configured.log_format, configured.log_level)
    Metrics.are_shared = metrics.share(configured.metrics_dir)
    Metrics.health = staticmethod(health) if health else None
    complained = False
    while True:
        try:
            with ThreadingHTTPServer((configured.metrics_host, configured.metrics_port), Metrics) as server:
                emit(MetricsServing(configured.metrics_port))
                server.serve_forever()
        except OSError as error:
            if not complained:
                emit(MetricsNotServed(configured.metrics_port, str(error.strerror)))
            complained = True
            threading.Event().wait(BIND_AGAIN_SECONDS)


class Metrics(BaseHTTPRequestHandler):
    """Answers ``GET /metrics`` and ``GET /health``."""

    server_version = "rota"
    sys_version = ""
    timeout = 10
    #: Whether the processes share their metrics in a folder.
    are_shared = False
    health: Health | None = None

    def do_GET(self) -> None:
        """Answer with the metrics of all processes as text, or with their health as JSON."""
        path = self.path.partition("?")[0]
        if path == "/health" and self.health is not None:
            is_healthy, body = self.health()
            self._answer(200 if is_healthy else 503, "application/json", body)
        elif path != "/metrics":
            self.send_error(404)
        elif not self.are_shared:
            self.send_error(503, "this worker has no shared metrics; see the event metrics.given_up in its log")
        else:
            self._answer(200, *collect())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


def collect() -> tuple[str, bytes]:
    """Return the content type and the text of the metrics."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    with _collecting:  # each request has its own thread
        metric_files.tidy(Path(os.environ[metrics.MULTIPROCESS]))
        MultiProcessCollector(registry)
        return CONTENT_TYPE_LATEST, generate_latest(registry)
