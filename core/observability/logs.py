"""Sets up logging: for people on a terminal, as JSON elsewhere. Every line of a run has the run's fields."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import structlog

from core.observability import lines, metrics, redaction
from core.observability.events import Event, emit
from core.observability.log_tail import LogTail
from core.observability.sink import FLUSH_SECONDS, STDERR, Sink, standard_error
from core.settings import LogFormat, LogLevel

#: The programs that import ``core.main`` to run it.
PROGRAMS = {"dramatiq", "periodiq", "rota"}
#: When this process ends or is stuck, handlers that are not Rota's may block it for at most this many seconds.
OTHERS_SECONDS = 1.0

#: The attribute of Dramatiq's log records that has the secrets of the message. The traceback may contain these secrets.
SECRETS = "rota_secrets"

#: The fields to put on each line, and the LogTail that keeps the last lines.
_about: ContextVar[tuple[Mapping[str, Any], LogTail | None]] = ContextVar("rota.about", default=({}, None))


class about:  # a class, since a generator takes twice the time, and each run needs this
    """Put ``fields`` on every line that is logged in the block, and add the line to ``tail``.

    structlog's bound variables are not used, since they need a context variable for each field.
    """

    __slots__ = ("_about", "_token")

    def __init__(self, fields: Mapping[str, Any], tail: LogTail | None = None) -> None:
        self._about = fields, tail

    def __enter__(self) -> None:
        self._token = _about.set(self._about)

    def __exit__(self, *_error: object) -> None:
        _about.reset(self._token)


def merge_about(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Add the fields of ``about`` that the line itself does not have."""
    return {**_about.get()[0], **event}


class EmitOnce:
    """Logs an event only once, for a step that is retried often. After another event or a reset, it is logged again."""

    def __init__(self) -> None:
        self._last: Event | None = None

    def emit(self, event: Event) -> None:
        """Log ``event``, unless it equals the last event."""
        if event != self._last:
            emit(event)
        self._last = event

    def reset(self) -> None:
        """Remember that the step has worked, so that the next event is logged."""
        self._last = None


SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    merge_about,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.PositionalArgumentsFormatter(),
]


#: The processors that hide secrets and bound the length of a line before the line is rendered.
BOUNDS: list[Any] = [structlog.processors.ExceptionRenderer(lines.in_words), lines.without_secrets, lines.bounded]


def is_ours() -> bool:
    """Return whether this process is one of Rota's programs, not an application that imports ``core.main``."""
    started = Path(sys.argv[0] if sys.argv else "")
    name = started.parent.name if started.stem in {"__main__", "__init__"} else started.stem
    return name in PROGRAMS or "core" in started.parts


def configure(log_format: LogFormat = "auto", level: LogLevel = "INFO") -> None:
    """Send all log lines, of Rota and of the libraries, through one formatter, without blocking.

    Only Rota's own programs call this, since an application has its own logging. Call it after handlers are installed:
    Dramatiq and periodiq install theirs before they import ``core.main``.
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
    given = [handler for handler in root.handlers if not isinstance(handler, TailHandler)]
    root.handlers = [sink_for(handler) for handler in given] or first_handlers()
    for handler in root.handlers:
        handler.addFilter(hide_arguments)
        handler.setFormatter(formatter(log_format))
    root.addHandler(TailHandler())
    root.setLevel(level)


def sink_for(handler: logging.Handler) -> logging.Handler:
    """Return the handler to use instead of ``handler``.

    If ``handler`` writes to a stream, the returned handler does not block.
    """
    if not isinstance(handler, logging.StreamHandler):
        return handler
    is_standard = handler.stream is not None and getattr(handler.stream, "fileno", None) and is_stderr(handler.stream)
    stream = standard_error() if is_standard else handler.stream
    return Sink(stream, metrics.log_lines_dropped) if stream is not None else logging.NullHandler()


def is_stderr(stream: Any) -> bool:
    """Return whether ``stream`` is this process's standard error."""
    try:
        return bool(stream.fileno() == STDERR)
    except (OSError, ValueError):
        return False


def first_handlers() -> list[logging.Handler]:
    """Return the handlers for a process that has no handlers yet."""
    stream = standard_error()
    return [Sink(stream, metrics.log_lines_dropped) if stream is not None else logging.NullHandler()]


def hide_arguments(record: logging.LogRecord) -> bool:
    """Remove arguments of messages from Dramatiq's log lines, since they may be secret or very long."""
    if isinstance(record.args, tuple) and record.name.startswith("dramatiq"):
        if names := redaction.redacted():
            kwargs = [getattr(each, "kwargs", {}) for each in record.args]
            setattr(record, SECRETS, redaction.texts({"messages": kwargs}, names))
        record.args = tuple(without_arguments(each) for each in record.args)
    return True


def without_arguments(value: Any) -> Any:
    """Return the actor and the id of a message of Dramatiq's. Return any other value unchanged."""
    is_message = hasattr(value, "actor_name") and hasattr(value, "message_id")
    return f"{value.actor_name} {value.message_id}" if is_message else value


def flush(within: float = FLUSH_SECONDS) -> None:
    """Wait until waiting lines are written, but at most ``within`` seconds.

    A process that ends without the interpreter's shutdown must call this function before its end.
    """
    sinks, others = handlers()
    for sink in sinks:
        sink.flush(within)
    call_others(logging.Handler.flush, others)


def emit_unblocked(event: Event) -> None:
    """Log ``event``, even if other threads of this process stand still.

    This function takes no lock of ``logging``, since a thread may hold such a lock for ever. Rota's handlers never
    block, and get the event first. All other handlers have one second.
    """
    if event.severity < logging.getLogger().level:
        return
    level = event.severity
    attributes = {"name": event.logger, "msg": event, "levelno": level, "levelname": logging.getLevelName(level)}
    record = logging.makeLogRecord(attributes)
    sinks, others = handlers()
    for sink in sinks:
        sink.handle(record)
    call_others(lambda handler: handler.handle(record), [each for each in others if level >= each.level])


def handlers() -> tuple[list[Sink], list[logging.Handler]]:
    """Return the handlers of the root logger that write: first Rota's, which never block, then all others."""
    found = [each for each in logging.getLogger().handlers if not isinstance(each, TailHandler)]
    return [each for each in found if isinstance(each, Sink)], [each for each in found if not isinstance(each, Sink)]


def call_others(action: Callable[[logging.Handler], object], others: Sequence[logging.Handler]) -> None:
    """Do ``action`` with each of ``others``, which may block, and wait for at most a second."""

    def act() -> None:
        for handler in others:
            action(handler)

    if others:
        acting = threading.Thread(target=act, name="rota-log-others", daemon=True)
        with suppress(RuntimeError):  # the machine refuses another thread
            acting.start()
            acting.join(OTHERS_SECONDS)


class Formatter(structlog.stdlib.ProcessorFormatter):
    """Turns a log record into a line. Rota's own events take a fast path, since there is one for each run."""

    def __init__(self, ending: list[Any]) -> None:
        super().__init__(
            foreign_pre_chain=SHARED, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending]
        )
        self._ending = ending

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without the newline at its end."""
        secrets = getattr(record, SECRETS, ())
        if not secrets:
            return self._line(record)
        with redaction.hiding(secrets):
            return self._line(record)

    def _line(self, record: logging.LogRecord) -> str:
        if not isinstance(record.msg, Event):
            return super().format(record)
        line: Any = lines.of_event(record.msg, record, _about.get()[0])
        for processor in self._ending:
            line = processor(None, "", line)
        return str(line)


class TailHandler(logging.Handler):
    """Adds each line of an attempt to the attempt's tail."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Formatter([*BOUNDS, lines.plain]))

    def handle(self, record: logging.LogRecord) -> bool:
        """Format the line, but only within an attempt. No lock is needed, since a tail has one thread."""
        tail = _about.get()[1]
        if tail is not None and hide_arguments(record):
            self._add(tail, record)
        return True

    def _add(self, tail: LogTail, record: logging.LogRecord) -> None:
        try:
            tail.add(self.format(record))
        except Exception as error:  # noqa: BLE001 — a log line must not fail a run
            tail.add(f"{record.name}: a line could not be formatted: {type(error).__name__}")


def formatter(log_format: LogFormat) -> Formatter:
    """Return the formatter for ``log_format``."""
    if log_format == "auto":
        # In a worker, sys.stderr is Dramatiq's pipe. Only descriptor 2 shows whether the log goes to a terminal.
        log_format = "console" if os.isatty(STDERR) else "json"
    renderer = lines.as_json if log_format == "json" else lines.console(colors=os.isatty(STDERR))
    return Formatter([*BOUNDS, renderer])
