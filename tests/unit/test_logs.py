"""Log lines: JSON that names the run of a line, and text for people."""

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy
import structlog
from dramatiq import Message

from core import Run, job
from core.ledger.leases import Lease
from core.middleware.db_session import Work
from core.middleware.execution import Execution
from core.observability import events, logs
from core.observability.events import RunSucceeded
from core.observability.logs import EmitOnce, TailHandler
from core.observability.sink import Sink

SLOT = datetime(2026, 3, 1, 3, 30, tzinfo=UTC)
LEASE = Lease(7, 1, 1, "close-day", "", SLOT, 2, 1, {}, SLOT, SLOT)


@job("close-day")
def close_day(run: Run) -> None: ...


class Log:
    """The lines that were written since the test began."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        logs.flush()
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def log() -> Iterator[Log]:
    """Let the root logger write to this log, and restore it after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    log = Log()
    root.handlers = [logging.StreamHandler(log.stream)]
    yield log
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def json_log(log: Log) -> Log:
    logs.configure("json")
    return log


def test_a_line_of_the_standard_library_is_json_with_time_level_and_logger(json_log: Log):
    logging.getLogger("core.example").info("run.started id=%s", 7)

    [line] = json_log.lines
    assert (line["event"], line["level"], line["logger"]) == ("run.started id=7", "info", "core.example")
    assert abs(datetime.fromisoformat(line["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_line_of_a_job_is_json_with_its_fields_and_its_jobs_name(json_log: Log):
    log_of_a_run().warning("sale.odd", amount=5, at=SLOT)

    [line] = json_log.lines
    assert (line["event"], line["level"], line["logger"]) == ("sale.odd", "warning", "job.close-day")
    assert (line["amount"], line["at"]) == (5, str(SLOT))


def log_of_a_run() -> Any:
    """Return ``Run.log`` of a run of the job."""
    execution = Execution([], close_day, lease=LEASE)
    execution.open(Work(sqlalchemy.create_engine("postgresql+psycopg2://nowhere"), LEASE))
    assert execution.run is not None
    return execution.run.log


def context(lease: Lease) -> AbstractContextManager[None]:
    return logs.about(Execution([], close_day, lease=lease).fields)


def test_every_line_of_a_run_says_which_run_it_is(json_log: Log):
    with context(LEASE):
        log_of_a_run().info("from the job")
        logging.getLogger("sqlalchemy").warning("from a library")

    expected = {"job": "close-day", "run": 7, "slot": SLOT.isoformat(), "attempt": 2}
    assert [{name: line[name] for name in expected} for line in json_log.lines] == [expected, expected]


def test_a_line_after_a_run_does_not_belong_to_it(json_log: Log):
    with pytest.raises(ValueError, match="mine"), context(LEASE):
        raise ValueError("mine")

    logging.getLogger().warning("afterwards")

    assert "run" not in json_log.lines[0]


def test_an_exception_stays_within_its_line_in_both_kinds_of_logger(json_log: Log):
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger().exception("failed")
        log_of_a_run().exception("failed too")

    for line in json_log.lines:
        assert "Traceback" in line["exception"]
        assert "ValueError: odd" in line["exception"]
    assert len(json_log.lines) == 2


@pytest.mark.parametrize("message", ["two\nlines", "100 %", "{braces}", "München", 'say "so"', "\x1b[31mred", "\ud800"])
def test_any_message_is_one_line_that_parses(json_log: Log, message):
    logging.getLogger().warning(message)
    log_of_a_run().warning(message)

    assert [line["event"] for line in json_log.lines] == [message, message]


def test_fields_that_json_does_not_know_are_written_as_text(json_log: Log):
    log_of_a_run().info("odd", value={1, 2}, error=ValueError("x"))

    assert json_log.lines[0]["value"] == "{1, 2}"


def test_the_level_applies_to_both_kinds_of_logger(log: Log):
    logs.configure("json", "WARNING")

    logging.getLogger("core").info("quiet")
    log_of_a_run().info("quiet")
    logging.getLogger("core").warning("loud")
    log_of_a_run().warning("loud")

    assert [line["event"] for line in log.lines] == ["loud", "loud"]


def test_the_console_is_for_people(log: Log):
    logs.configure("console")

    with context(LEASE):
        logging.getLogger("core").warning("run.failed")

    assert "run.failed" in log.text
    assert "close-day" in log.text
    assert not log.text.startswith("{")


@pytest.mark.parametrize(("is_terminal", "is_json"), [(True, False), (False, True)])
def test_auto_is_the_console_on_a_terminal_and_json_elsewhere(log: Log, monkeypatch, is_terminal, is_json):
    monkeypatch.setattr(os, "isatty", lambda descriptor: is_terminal)
    logs.configure("auto")

    logging.getLogger().warning("event")

    assert log.text.startswith("{") is is_json


def test_without_a_handler_one_is_made(log: Log):
    logging.getLogger().handlers = []

    logs.configure("json")

    assert [type(handler) for handler in logging.getLogger().handlers] == [Sink, TailHandler]


# Events


def test_an_event_is_json_with_its_fields(json_log: Log):
    events.emit(RunSucceeded("close-day", 7, 2, 0.019))

    [line] = json_log.lines
    assert {name: line[name] for name in ("event", "job", "run", "attempt", "seconds", "level", "logger")} == {
        "event": "run.succeeded",
        "job": "close-day",
        "run": 7,
        "attempt": 2,
        "seconds": 0.019,
        "level": "info",
        "logger": "rota.run",
    }
    assert "text" not in line


def test_a_warning_says_in_words_what_it_means(json_log: Log):
    events.emit(events.MetricsNotServed(9191, "Address already in use"))

    [line] = json_log.lines
    assert (line["event"], line["port"]) == ("metrics.not_served", 9191)
    assert line["text"] == (
        "metrics cannot be served on port 9191: Address already in use; "
        "set ROTA_METRICS_PORT to another port, or to 0 for none"
    )


def test_the_last_failure_of_a_run_is_an_error(json_log: Log):
    for state in ("retrying", "dead"):
        events.emit(events.RunFailed("close-day", 7, 1, state, "error", 0.1, "ValueError: odd"), ValueError("odd"))

    assert [line["level"] for line in json_log.lines] == ["warning", "error"]
    assert all("ValueError: odd" in line["exception"] for line in json_log.lines)


def test_people_read_the_time_the_job_and_what_happened(log: Log):
    logs.configure("console")

    with context(LEASE):
        events.emit(RunSucceeded("close-day", 7, 2, 0.019))
        events.emit(events.RunNotRecorded("away"))
        log_of_a_run().info("sale.odd", amount=5)

    first, second, third = log.text.splitlines()
    subject = f"{'close-day':<30}"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d   {subject} run 7 succeeded in 0\.019 s", first)
    assert second[8:] == f" ! {subject} an outcome could not be recorded, trying again: away [run.not_recorded]"
    assert third.endswith(f"   {subject} sale.odd amount=5 (run 7)")


def test_a_line_of_a_library_begins_with_its_name(log: Log):
    logs.configure("console")

    logging.getLogger("dramatiq.WorkerProcess(0)").info("Worker process is ready for action.")

    assert log.text[8:] == f"   {'dramatiq':<30} Worker process is ready for action.\n"


@pytest.mark.parametrize("job", ["send-mail", "process-customer-service-queue"])
def test_the_success_of_a_run_fits_into_80_columns(log: Log, job: str):
    logs.configure("console")

    events.emit(RunSucceeded(job, 1_234_567_890, 2, 3599.999))

    assert len(log.text.rstrip()) <= 80


def test_a_terminal_is_not_controlled_by_what_is_logged(log: Log):
    logs.configure("console")

    logging.getLogger("x").warning("\x1b[2J\x9b31m\u202eevil")

    assert "\\x1b[2J\\x9b31m\\u202eevil" in log.text


def test_an_event_is_emitted_once_until_it_is_another_or_all_was_well(json_log: Log):
    once = EmitOnce()
    away, odd = events.RunNotClaimed("away"), events.RunNotClaimed("odd")
    for event in (away, away, odd, away):
        once.emit(event)
    once.reset()
    once.emit(away)

    assert [line["error"] for line in json_log.lines] == ["away", "odd", "away", "away"]


# The content of a line


class Silent:
    def __str__(self) -> str:
        raise ValueError("no text")


VALUES = [float("nan"), float("inf"), {(1, 2): 3}, b"\xff", Silent(), "\ud800", 2**70, [[{1}]], object]


@pytest.mark.parametrize("value", VALUES, ids=[str(number) for number in range(len(VALUES))])
def test_every_line_parses_whatever_a_field_holds(json_log: Log, value: Any):
    circle: list[Any] = [value]
    circle.append(circle)

    log_of_a_run().warning("odd", value=value, nested={"value": [value]}, circle=circle)

    [line] = json_log.lines
    assert line["event"] == "odd"
    assert "value" in line


def test_a_huge_exception_and_a_huge_field_are_cut(json_log: Log):
    try:
        raise ValueError("x" * 30_000_000)
    except ValueError:
        log_of_a_run().exception("failed", body="y" * 30_000_000, many=["z" * 1000] * 1000)

    [line] = json_log.lines
    assert len(json_log.text) < 100_000
    assert line["event"] == "failed"
    assert line["is_cut"] is True


def test_a_traceback_holds_no_local_variables(log: Log):
    logs.configure("console")
    secret = "-".join(("hunter", "2"))
    try:
        raise ValueError(len(secret))
    except ValueError:
        logging.getLogger("x").exception("failed")

    assert "ValueError: 8" in log.text
    assert "hunter-2" not in log.text


def test_a_line_of_dramatiqs_names_a_message_without_its_arguments(json_log: Log):
    message = Message("mail", "send-mail", args=(), kwargs={"token": "secret"}, options={}, message_id="m-1")

    logging.getLogger("dramatiq").warning("Failed to process message %s with %r.", message, "x")

    [line] = json_log.lines
    assert line["event"] == "Failed to process message send-mail m-1 with 'x'."
