"""How events are written: for people on a terminal, as JSON lines elsewhere, with the run on every line of a run."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import structlog

from core.settings import LogFormat, LogLevel

STDERR = 2

_about: ContextVar[Mapping[str, Any]] = ContextVar("rota.about", default={})  # noqa: B039 — never changed in place


@contextmanager
def about(fields: Mapping[str, Any]) -> Iterator[None]:
    """Put ``fields`` on every line logged within; structlog's own way costs a context variable for each field."""
    token = _about.set(fields)
    try:
        yield
    finally:
        _about.reset(token)


def merge_about(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Add what the line is about, unless the line itself says otherwise."""
    return {**_about.get(), **event}


class LogOnce:
    """Logs an error once, and again only after another error or a reset: for what is tried again and again."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last = ""

    def error(self, message: str) -> None:
        """Log ``message`` as an error, unless it equals the last one."""
        if message != self._last:
            self._logger.error(message)
        self._last = message

    def reset(self) -> None:
        """What failed has worked: log the next error, whatever it is."""
        self._last = ""


SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    merge_about,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.PositionalArgumentsFormatter(),
]


def configure(log_format: LogFormat = "auto", level: LogLevel = "INFO") -> None:
    """Send everything that is logged, ours and the libraries', through one formatter.

    Call it after the handlers are there: Dramatiq and periodiq install theirs before they import ``core.main``.
    """
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
    for handler in root.handlers:
        handler.setFormatter(formatter(log_format))
    root.setLevel(level)


def formatter(log_format: LogFormat) -> structlog.stdlib.ProcessorFormatter:
    """What turns an event into a line."""
    if log_format == "auto":
        # A worker's sys.stderr is Dramatiq's pipe: only the descriptor knows whether a person is reading.
        log_format = "console" if os.isatty(STDERR) else "json"
    ending: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if log_format == "json":
        ending += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        ending += [structlog.dev.ConsoleRenderer(colors=os.isatty(STDERR))]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=SHARED, processors=ending)
