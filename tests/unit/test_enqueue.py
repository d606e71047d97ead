"""Requests that ``enqueue`` refuses without asking PostgreSQL, and the effect of a failed attempt on its run."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from core import Run, enqueue, enqueue_many, every, job, publish, send, send_many
from core.errors import BadArguments, BadResult, RotaError, TimeLimitExceeded, UnknownJob
from core.ledger import outbox
from core.ledger.leases import Lease
from core.ledger.models import State
from core.plugins import loading
from core.testing import registry_of
from core.worker.actors import by_name
from core.worker.outcomes import diagnose, in_words

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@job("close-day", max_retries=2, retry_delay=5 * MINUTE)
def close_day(run: Run, region: str = "uk", limit: int = 10) -> None: ...


@job("fast", ledger=False)
def fast(run: Run) -> None: ...


@pytest.fixture(autouse=True)
def _only_these_jobs() -> Iterator[None]:
    with loading.using(registry_of(close_day, fast)):
        yield


#: A session without a database: a statement would raise an error.
NOWHERE = Session()


def test_an_unknown_job_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownJob, match="unknown job 'close_day'; did you mean 'close-day'"):
        enqueue(NOWHERE, "close_day")


def test_a_job_in_place_of_its_name_is_unknown():
    with pytest.raises(UnknownJob, match=r"unknown job Job\(name='close-day'"):
        enqueue(NOWHERE, close_day)  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [[], ["a"], ["a", "b", "c"]])
def test_as_many_keys_as_runs_are_wanted(keys: list[str]):
    with pytest.raises(BadArguments, match=rf"{len(keys)} keys were given for 2 runs; give one for each"):
        enqueue_many(NOWHERE, "close-day", [{}, {}], keys=keys)


def test_one_bad_argument_among_many_is_named():
    with pytest.raises(BadArguments, match="limit: "):
        enqueue_many(NOWHERE, "close-day", [{"limit": 1}, {"limit": "two"}])


def test_one_bad_key_among_many_is_refused():
    with pytest.raises(BadArguments, match="none of them NUL"):
        enqueue_many(NOWHERE, "close-day", [{}, {}], keys=["a", "\0"])


def test_many_for_a_job_of_the_other_lane_are_refused_with_what_to_do():
    with pytest.raises(BadArguments, match="use send"):
        enqueue_many(NOWHERE, "fast", [{}])
    with pytest.raises(BadArguments, match="request a run with enqueue"):
        send_many(NOWHERE, "close-day", [{}])


def test_a_job_on_the_fast_lane_is_refused_with_what_to_do():
    with pytest.raises(BadArguments, match=r"'fast' is on the fast lane .* use send"):
        enqueue(NOWHERE, "fast")


@pytest.mark.parametrize("key", [5, None, b"key", "a\0b", "a\ud800", "a" * 10_000])
def test_a_key_that_is_not_a_clean_string_is_refused(key):
    with pytest.raises(BadArguments, match="job 'close-day': key must be a string"):
        enqueue(NOWHERE, "close-day", key=key)


@pytest.mark.parametrize("delay", [-MINUTE, timedelta(microseconds=-1), timedelta(days=3661), timedelta.max])
def test_a_delay_out_of_range_is_refused(delay):
    with pytest.raises(BadArguments, match="job 'close-day': delay="):
        enqueue(NOWHERE, "close-day", delay=delay)


@pytest.mark.parametrize(
    ("delay", "meant"),
    [
        (60, "seconds=60"),
        (0, "seconds=0"),
        (1.5, r"seconds=1\.5"),
        ("60", "minutes=1"),
        (None, "minutes=1"),
        (NOON, "minutes=1"),
    ],
)
def test_a_delay_that_is_no_timedelta_is_refused_with_what_may_be_meant(delay, meant):
    with pytest.raises(
        BadArguments, match=rf"job 'close-day': delay=.* must be a timedelta, such as timedelta\({meant}\)"
    ):
        enqueue(NOWHERE, "close-day", delay=delay)


# Transactions of requests

ASKED = {
    "enqueue": lambda session: enqueue(session, "close-day"),
    "enqueue_many": lambda session: enqueue_many(session, "close-day", [{}]),
    "send": lambda session: send(session, "fast"),
    "send_many": lambda session: send_many(session, "fast", [{}]),
    "publish": lambda session: publish(session, "channel", {}),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("session", [AsyncSession(), async_scoped_session(AsyncSession, int)], ids=["plain", "scoped"])
def test_an_asynchronous_session_is_refused_with_what_to_do(ask, session):
    with pytest.raises(
        RotaError, match=r"is asynchronous; with an AsyncSession, call `await session.run_sync\(enqueue, \.\.\.\)`"
    ):
        ask(session)


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("session", [create_engine("sqlite://"), Session, None], ids=["engine", "class", "none"])
def test_what_is_no_session_is_refused(ask, session):
    with pytest.raises(RotaError, match=r"session must be a SQLAlchemy Session, not .*; `Session\(bind=connection\)`"):
        ask(session)


def test_a_scoped_session_is_the_session_that_it_has():
    scoped = scoped_session(sessionmaker())

    publish(scoped, "orders", {"state": "paid"})  # type: ignore[arg-type]

    assert outbox.of(scoped()).publications == [("orders", {"state": "paid"})]


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(BadArguments, match="job 'close-day': limit: input should be a valid integer"):
        enqueue(NOWHERE, "close-day", args={"limit": "ten"})


@pytest.mark.parametrize("priority", [-1, 10, 11, 1.5, "5", True])
def test_a_priority_that_no_run_may_have_is_refused(priority):
    expected = f"priority={priority!r} must be a whole number, 0 to 9"
    with pytest.raises(BadArguments, match=expected):
        enqueue(NOWHERE, "close-day", priority=priority)
    with pytest.raises(BadArguments, match=expected):
        enqueue_many(NOWHERE, "close-day", [{}], priority=priority)


# Positional arguments of a message


def test_positional_arguments_get_their_names():
    assert by_name(close_day, ("fr",), {"limit": 5}) == {"region": "fr", "limit": 5}
    assert by_name(close_day, (), {}) == {}


def test_too_many_positional_arguments_are_refused():
    with pytest.raises(BadArguments, match="takes at most 2 arguments, and 3 were given"):
        by_name(close_day, ("fr", 5, 6), {})


# Failed attempts


def lease(failures: int) -> Lease:
    return Lease(7, 1, 1, "close-day", "", None, failures + 1, failures, {}, NOON, NOON)


@pytest.mark.parametrize("failures", [0, 1])
def test_a_failed_attempt_is_retried_after_the_jobs_delay(failures):
    found = diagnose(close_day, lease(failures), ValueError("odd"))

    assert (found.state, found.reason, found.error) == (State.RETRYING, "error", "ValueError: odd")
    assert found.delay == 5 * MINUTE


def test_the_attempt_after_the_last_retry_is_the_end():
    found = diagnose(close_day, lease(failures=2), ValueError("odd"))

    assert (found.state, found.reason) == (State.DEAD, "retries")


@pytest.mark.parametrize(("error", "reason"), [(BadArguments("bad"), "arguments"), (BadResult("bad"), "result")])
def test_what_no_retry_can_change_is_not_retried(error, reason):
    found = diagnose(close_day, lease(failures=0), error)

    assert (found.state, found.reason) == (State.DEAD, reason)


@pytest.mark.parametrize("error", [TimeLimitExceeded("soft limit"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_a_job_raises_is_a_failure_like_any_other(error):
    assert diagnose(close_day, lease(failures=0), error).state == State.RETRYING


@pytest.mark.parametrize(("error", "state"), [(OSError(), State.RETRYING), (KeyError(), State.DEAD)])
def test_an_error_that_the_jobs_rules_do_not_retry_is_the_end(error, state):
    picky = job("close-day", retry_on=(OSError,))(lambda run: None)

    assert diagnose(picky, lease(failures=0), error).state == state


@pytest.mark.parametrize("error", [BadArguments("bad"), ValueError("odd")])
def test_an_error_that_is_not_retried_has_its_own_reason(error):
    picky = job("close-day", dead_on=(ValueError,))(lambda run: None)
    found = diagnose(picky, lease(failures=0), error)

    assert (found.state, found.reason) == (State.DEAD, "arguments" if isinstance(error, BadArguments) else "no retry")


@pytest.mark.parametrize(
    ("took", "delay", "latest"),
    [
        (0 * MINUTE, MINUTE, 15 * MINUTE),
        (14.5 * MINUTE, MINUTE, 15.5 * MINUTE),  # retry_delay is longer than the time to the next slot
        (15 * MINUTE, MINUTE, 30 * MINUTE),  # a slot came due during the attempt, so the slot after it counts
    ],
)
def test_the_retry_of_a_slot_is_due_by_the_next_slot_or_after_the_retry_delay(took, delay, latest):
    failing = job("work", schedule=every(minutes=15), retry_delay=delay, backoff="exponential")(lambda run: None)
    found = diagnose(failing, replace(lease(failures=2), slot=NOON), ValueError("odd"), took.total_seconds())

    assert found.latest == NOON + latest


@pytest.mark.parametrize(("backoff", "slot"), [("fixed", NOON), ("exponential", None)])
def test_fixed_delays_and_requests_are_not_cut(backoff, slot):
    failing = job("work", schedule=every(minutes=1), backoff=backoff)(lambda run: None)

    assert diagnose(failing, replace(lease(failures=2), slot=slot), ValueError("odd")).latest is None


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (ValueError(), "ValueError"),
        (ValueError("a\0b"), "ValueError: a�b"),
        (ValueError("\ud800"), "ValueError: ?"),
        (Unreadable(), "Unreadable (its text cannot be read)"),
    ],
)
def test_any_error_is_told_in_words_that_the_ledger_can_hold(error, words):
    assert in_words(error) == words
