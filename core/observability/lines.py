"""The format of a log line: JSON for programs, and a short line for people."""

import json
import logging
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from core.observability import redaction
from core.observability.events import Event
from core.observability.terminal_text import visible

EventDict = MutableMapping[str, Any]
#: The longest text of a field, in characters. A longer traceback is cut in its middle.
LONGEST_FIELD = 16 * 2**10
#: The longest line of JSON, in characters. A longer line keeps only its short fields.
LONGEST_LINE = 64 * 2**10
LONGEST_SHORT = 1024
#: The width of a line's job on a terminal, in characters. It lets the text of a run's success fit into 80 columns.
SUBJECT_WIDTH = 30
#: The fields that say which run or message a line is about. A line for people shows them in another way.
ABOUT = ("job", "run", "slot", "attempt", "message")
#: The fields that only Rota sets. They never hold a value of an argument, so nothing is hidden in them.
KEPT = (*ABOUT, "timestamp", "level", "logger")
DIM, YELLOW, RED, PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
MARKS = {"warning": ("!", YELLOW), "error": ("E", RED), "critical": ("E", RED), "debug": ("d", DIM)}


def of_event(event: Event, record: logging.LogRecord, about: Mapping[str, Any]) -> EventDict:
    """Return the line of ``event``, with the fields ``about`` of the attempt that logged it."""
    fields = event.fields()
    line: EventDict = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
        "level": record.levelname.lower(),
        "event": event.name,
        **about,
        **fields,
        "logger": record.name,
        "words": event.words.format_map(fields),
    }
    if record.exc_info:
        line["exc_info"] = record.exc_info
    return line


def in_words(exc_info: tuple[type[BaseException], BaseException, TracebackType | None]) -> str:
    """Return a traceback, or only its head and its tail if it is too long.

    The traceback has no local variables, since they may hold secrets.
    """
    try:
        text = "".join(traceback.format_exception(*exc_info)).rstrip("\n")
    except Exception as error:  # noqa: BLE001 — formatting calls methods of the exception, which may raise anything
        return f"{exc_info[0].__name__} (its traceback cannot be formatted: {type(error).__name__})"
    return without_middle(text)


def without_middle(text: str) -> str:
    """Return ``text``, or its head and its tail if it is too long."""
    text = redaction.hide(text)
    if len(text) <= LONGEST_FIELD:
        return text
    half = LONGEST_FIELD // 2
    return f"{text[:half]}\n… {len(text) - LONGEST_FIELD} characters left out …\n{text[-half:]}"


def without_secrets(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """Hide the secrets of the run that this thread works on, and the fields that ``ROTA_REDACT`` names."""
    shown: EventDict = redaction.hide_within(redaction.named(line, redaction.redacted()))
    return line if shown is line else {**shown, **{name: line[name] for name in KEPT if name in line}}


def bounded(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """Cut fields that are too long."""
    for name, value in line.items():
        if isinstance(value, str) and len(value) > LONGEST_FIELD and name != "exception":
            line[name] = f"{value[:LONGEST_FIELD]}… ({len(value) - LONGEST_FIELD} characters left out)"
    return line


def as_json(_logger: Any, _method: str, line: EventDict) -> str:
    """Return the line as a JSON object. The lines of warnings and errors also have their text for people, ``text``."""
    words = line.pop("words", None)
    if words is not None and line.get("level") not in {"debug", "info"}:
        line["text"] = words
    told = dumped(line)
    if len(told) <= LONGEST_LINE:
        return told
    return dumped({**{name: value for name, value in line.items() if is_short(value)}, "is_cut": True})


def is_short(value: Any) -> bool:
    """Return whether a field is kept in a line that is too long."""
    return isinstance(value, (int, float, bool)) or (isinstance(value, str) and len(value) <= LONGEST_SHORT)


def dumped(fields: Mapping[str, Any]) -> str:
    """Return ``fields`` as JSON. A value that JSON cannot hold is written as text."""
    try:
        return json.dumps(fields, default=text_of, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps({str(name): held(value) for name, value in fields.items()})


def held(value: Any) -> Any:
    """Return ``value`` if JSON can hold it, and otherwise its text."""
    try:
        json.dumps(value, default=text_of, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return text_of(value)
    return json.loads(json.dumps(value, default=text_of))


def text_of(value: Any) -> str:
    """Return the text of a value whose ``str`` may raise an error."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 — ``value`` may be of a job's class, whose ``str`` may raise anything
        return f"<{type(value).__name__}>"


def console(*, colors: bool) -> Callable[[Any, str, EventDict], str]:
    """Return a renderer for people. A line has the time, the job (or the topic, or the library), and the text."""

    def paint(text: str, colour: str) -> str:
        return f"{colour}{text}{PLAIN}" if colors and text else text

    def render(_logger: Any, _method: str, line: EventDict) -> str:
        mark, colour = MARKS.get(line["level"], (" ", ""))
        event, words = str(line["event"]), line.get("words")
        subject = str(line.get("job") or (event if words else str(line.get("logger", ""))).partition(".")[0])
        said = said_by(line)
        where = "" if words is not None or not line.get("run") else f" (run {line['run']})"
        name = f" [{event}]" if words is not None and mark in {"!", "E"} else ""
        head = " ".join([paint(clock(line["timestamp"]), DIM), paint(mark, colour), f"{subject:<{SUBJECT_WIDTH}}"])
        told = f"{head} {paint(visible(said), colour)}{paint(where + name, DIM)}"
        return "\n".join([told, *map(visible, line.get("exception", "").splitlines())])

    return render


def plain(_logger: Any, _method: str, line: EventDict) -> str:
    """Return the line as it is kept with an attempt: the time of day in UTC, any level but info, and the text."""
    level = "" if line["level"] == "info" else f"{line['level']}: "
    told = f"{datetime.fromisoformat(line['timestamp']):%H:%M:%S}Z {level}{said_by(line)}"
    return "\n".join([told, *filter(None, [line.get("exception")])])


def said_by(line: EventDict) -> str:
    """Return the text of a line: the text of one of Rota's events, or the line's event with its fields."""
    words = line.get("words")
    if words is not None:
        return str(words)
    return " ".join([str(line["event"]), *(f"{name}={value}" for name, value in extra(line))])


def extra(line: EventDict) -> list[tuple[str, Any]]:
    """Return the fields of a line of a library, without the fields that many lines have."""
    known = {"event", "level", "logger", "timestamp", "exception", *ABOUT}
    return [(name, value) for name, value in line.items() if name not in known]


def clock(timestamp: str) -> str:
    """Return the time of day of an ISO 8601 instant, in this machine's time zone."""
    return datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S")
