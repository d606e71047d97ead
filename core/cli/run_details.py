"""Prints one run in full: its facts, its attempts, the run that enqueued it, and the runs that it has enqueued."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from core.cli.output import say
from core.ledger.models import FINAL, WAITING, State
from core.operations.limits import LimitUse
from core.operations.limits import in_words as in_words_of_limit
from core.operations.listing import Attempt, Details, Relative
from core.operations.wording import local, local_zone, span

INDENT = "  "
LABEL_WIDTH = 13


def show(run: Details, waits_for: Sequence[str], now: datetime) -> None:
    """Print the run. ``waits_for`` are the pauses whose end the run waits for."""
    reason = f" ({run.reason})" if run.reason else ""
    say(f"run {run.id} of {run.job}: {run.state}{reason}")
    for label, value in facts(run, waits_for, local_zone(now)):
        say(f"{INDENT}{label:<{LABEL_WIDTH}}{value}")
    told: dict[str, int] = {}
    for attempt in run.attempts:
        show_attempt(attempt, told)
    if run.enqueued:
        more = f", the newest {len(run.enqueued)}" if run.has_enqueued_more else ""
        say("", f"enqueued{more}:", *(f"{INDENT}{in_words(child)}" for child in run.enqueued))


def facts(run: Details, waits_for: Sequence[str], zone: str) -> Iterator[tuple[str, str]]:
    """Yield the facts about the run, with labels."""
    if run.key:
        yield "key", run.key
    yield "slot", f"{local(run.slot)} {zone}" if run.slot else "none: it was requested"
    if run.enqueued_by is not None:
        yield "enqueued by", in_words(run.enqueued_by)
    if run.subject:
        yield "subject", run.subject
    yield "queue", f"{run.queue}, priority {run.priority}" if run.priority else run.queue
    yield "arguments", run.args if isinstance(run.args, str) else as_text(run.args)
    if run.limits:
        yield "limits", ", ".join(run.limits)
    yield "queued", f"{local(run.queued_at)} {zone}"
    if run.state in WAITING:
        yield "due", f"{local(run.due_at)} {zone}"
        yield from (("waits for", pause) for pause in waits_for)
        if run.limit is not None:
            yield from limit_facts(run.limit, zone)
    if run.expires_at is not None:
        yield "expires", f"{local(run.expires_at)} {zone}"
    if run.started_at is not None:
        yield "started", f"{local(run.started_at)} {zone}, attempt {run.attempt}, on {run.worker}"
    if run.state in FINAL:
        took = f", after {span(run.finished_at - run.started_at)}" if run.started_at and run.finished_at else ""
        yield "ended", f"{local(run.finished_at)} {zone}{took}"
    if run.failures:
        yield "failed", times(run.failures)
    if run.crashes:
        yield "crashed", times(run.crashes)
    if run.cancelled is not None:
        why = f": {run.cancelled.reason}" if run.cancelled.reason else ""
        yield "cancelled", f"by {run.cancelled.by}, {local(run.cancelled.at)} {zone}{why}"
    if run.progress is not None and run.state != State.SUCCEEDED:
        yield "progress", as_text(run.progress)
    if run.state == State.SUCCEEDED:
        yield "result", as_text(run.result)
    elif run.error:
        yield "error", run.error.partition("\n")[0]


def limit_facts(limit: LimitUse, zone: str) -> Iterator[tuple[str, str]]:
    """Yield the limit that the run waits for, and the time until which that limit is closed."""
    yield "waits for", f"the limit {in_words_of_limit(limit)}"
    if limit.closed_until is not None:
        why = f": {limit.closed_reason}" if limit.closed_reason else ""
        yield "closed until", f"{local(limit.closed_until)} {zone}{why}"


def show_attempt(attempt: Attempt, told: dict[str, int]) -> None:
    """Print an attempt. ``told`` has the tracebacks printed before, each with the number of its first attempt."""
    reason = f" ({attempt.reason})" if attempt.reason else ""
    took = f" after {span(attempt.ended_at - attempt.started_at)}" if attempt.started_at else ""
    say("", f"attempt {attempt.attempt} {attempt.outcome}{reason}{took}: {local(attempt.ended_at)} on {attempt.worker}")
    traceback = traceback_of(attempt, told)
    if attempt.error and not traceback.endswith(attempt.error):
        paragraph(attempt.error)
    if traceback:
        paragraph(traceback)
    if attempt.log:
        say(f"{INDENT}the end of its log:")
        paragraph(attempt.log, INDENT * 2)


def traceback_of(attempt: Attempt, told: dict[str, int]) -> str:
    """Return the traceback of an attempt, or a reference to an earlier attempt with the same traceback."""
    if not attempt.traceback:
        return ""
    first = told.setdefault(attempt.traceback, attempt.attempt)
    return attempt.traceback if first == attempt.attempt else f"The traceback is that of attempt {first}."


def paragraph(text: str, indent: str = INDENT) -> None:
    """Print a text of several lines."""
    say(*(f"{indent}{line.expandtabs(4)}" for line in text.split("\n")))


def in_words(relative: Relative) -> str:
    """Return a related run in a few words."""
    key = f", key {relative.key}" if relative.key else ""
    return f"run {relative.id} of {relative.job}{key}: {relative.state}"


def times(count: int) -> str:
    """Return in words how many times something happened."""
    return "once" if count == 1 else f"{count} times"


def as_text(value: Any) -> str:
    """Return a JSON value as text, or ``none`` for None and an empty object."""
    return "none" if value in (None, {}) else json.dumps(value, ensure_ascii=False)
