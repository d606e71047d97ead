"""The process that serves ``/metrics`` and ``/health`` for all processes of one worker."""

import os
from concurrent.futures import wait
from functools import cache

import psutil

from core import settings
from core.observability import metrics_server
from core.operations import connections, service_health
from core.operations.service_health import PATIENCE_SECONDS, Watch

STATEMENT_SECONDS = 1.0


def serve() -> int:
    """Serve until stopped."""
    return metrics_server.serve(health)


def health() -> tuple[bool, bytes]:
    """Return whether the processes of this worker can work, and their health as JSON. Takes at most 2 seconds."""
    asked = watch()
    wait(asked.ask(), PATIENCE_SECONDS)
    found = asked.health()
    return found.status == "healthy", found.model_dump_json(exclude_none=True).encode()


@cache
def watch() -> Watch:
    """Return the watch that asks the servers for this worker. Its connection stays open until this process ends."""
    configured = settings.current()
    engine = connections.ledger(configured, "rota-health", STATEMENT_SECONDS, pool_size=1).__enter__()
    return Watch(engine, configured, mine=own_processes)


def own_processes() -> set[str]:
    """Return the names of the processes that the parent of this process has started, and of their children."""
    try:
        started = psutil.Process(os.getppid()).children(recursive=True)
    except psutil.NoSuchProcess:
        return set()
    return service_health.this_host([process.pid for process in started])


if __name__ == "__main__":
    serve()
