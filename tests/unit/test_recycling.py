"""When a process is replaced, by its messages and its memory."""

import pytest

from core.middleware.recycling import MEBIBYTE, MOST_SPREAD, RecyclingLimits


def never_asked() -> int:
    raise AssertionError("asked for its memory")


def exceeded(limits: RecyclingLimits, messages: int = 0, seconds: float = 100, mebibytes: int = 0) -> str:
    return limits.exceeded(messages, seconds, lambda: mebibytes * MEBIBYTE)


def test_messages_and_memory_are_bounded():
    limits = RecyclingLimits(messages=10, memory_mb=50, least_seconds=60, spread=1)

    assert exceeded(limits, messages=9, mebibytes=50) == ""
    assert exceeded(limits, messages=10) == "messages"
    assert exceeded(limits, mebibytes=51) == "memory"


def test_nothing_counts_before_it_has_lived_for_a_while():
    limits = RecyclingLimits(messages=10, memory_mb=50, least_seconds=60, spread=1)

    assert exceeded(limits, messages=1000, seconds=59.9, mebibytes=1000) == ""


@pytest.mark.parametrize("seconds", [61, 1e9])
def test_zero_is_no_bound(seconds):
    limits = RecyclingLimits(messages=0, memory_mb=0, least_seconds=60)

    assert limits.are_none
    assert limits.exceeded(10**9, seconds, never_asked) == ""


def test_processes_that_start_together_do_not_leave_together():
    several = [RecyclingLimits(1000, 0, 0) for _ in range(20)]
    most = {next(messages for messages in range(10_000) if exceeded(limits, messages)) for limits in several}

    assert len(most) > 5
    assert 1000 <= min(most) <= max(most) <= 1000 * (1 + MOST_SPREAD)
