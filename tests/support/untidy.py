"""Jobs that change the state of their process, as a plugin beside the chaos jobs; ``forks.py`` installs it."""

import contextlib
import decimal
import gc
import locale
import logging
import logging.config
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import chaos_jobs as chaos  # the chaos plugin is installed in the same folder
import structlog

from core import Run, hookimpl, job

customer: ContextVar[str] = ContextVar("customer", default="nobody")


def bind() -> None:
    """Set context variables of every kind."""
    customer.set("ada")
    structlog.contextvars.bind_contextvars(customer="ada")
    decimal.getcontext().prec = 3


def silence() -> None:
    """Turn off all logging."""
    logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL", "handlers": []}})
    logging.disable(logging.CRITICAL)


def start_thread() -> None:
    """Leave a thread running."""
    threading.Thread(target=threading.Event().wait, name=f"left-alive-{time.time_ns()}", daemon=True).start()


CHANGES: dict[str, Callable[[], object]] = {
    "context": bind,
    "folder": lambda: os.chdir("/"),
    "umask": lambda: os.umask(0o777),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "timeout": lambda: socket.setdefaulttimeout(0.001),
    "gc": gc.disable,
    "stdout": lambda: sys.stdout.close(),
    "stderr": lambda: setattr(sys, "stderr", None),
    "logging": silence,
    "environ": lambda: os.environ.update(UNTIDY="a secret"),
    "path": lambda: sys.path.append("/nowhere"),
    "warnings": lambda: warnings.simplefilter("error", BytesWarning),
    "thread": start_thread,
}


def umask() -> int:
    """Return the umask of this process."""
    now = os.umask(0o022)
    os.umask(now)
    return now


def logs_to() -> list[Any]:
    """Return the configuration of the log."""
    root = logging.getLogger()
    silent = [root.manager.disable, logging.getLogger("rota.run").disabled]
    return [root.level, [type(handler).__name__ for handler in root.handlers], *silent]


LOOKS: dict[str, Callable[[], Any]] = {
    "context": lambda: [customer.get(), structlog.contextvars.get_contextvars(), decimal.getcontext().prec],
    "folder": os.getcwd,
    "umask": umask,
    "locale": lambda: locale.setlocale(locale.LC_ALL),
    "timeout": socket.getdefaulttimeout,
    "gc": gc.isenabled,
    "stdout": lambda: [sys.stdout.closed, print("printed") is None],  # noqa: T201 — it is to work
    "stderr": lambda: sys.stderr is None,
    "logging": logs_to,
}


@job("change", queue="chaos", overlap="allow", max_retries=0)
def change(run: Run, what: str) -> None:
    """Change a part of the process's state, and leave the change."""
    CHANGES[what]()


@job("look", queue="chaos", overlap="allow", max_retries=0)
def look(run: Run, what: str) -> Any:
    """Return a part of the process's state."""
    return LOOKS[what]()


@job("move-for-a-while", queue="chaos", overlap="allow", max_retries=0)
def move_for_a_while(run: Run) -> list[str]:
    """Work in another folder until the test says so, and then change back."""
    with contextlib.chdir("/"):
        chaos.wait.function(run)
        return [os.getcwd()]


@job("handle-signal", queue="chaos", overlap="allow", max_retries=0)
def handle_signal(run: Run) -> None:
    """Set a handler for a signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Untidy:
    """The plugin."""

    @hookimpl
    def register_jobs(self):
        return [change, look, move_for_a_while, handle_signal]


plugin = Untidy()
