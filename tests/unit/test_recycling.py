"""How much a process bears before it is replaced."""

import pytest

from core.middleware.recycling import MEBIBYTE, MOST_PATIENCE, Endurance


def never_asked() -> int:
    raise AssertionError("asked for its memory")


def exceeded(endurance: Endurance, messages: int = 0, seconds: float = 100, mebibytes: int = 0) -> str:
    return endurance.exceeded(messages, seconds, lambda: mebibytes * MEBIBYTE)


def test_messages_and_memory_are_bounded():
    endurance = Endurance(messages=10, memory_mb=50, least_seconds=60, patience=1)

    assert exceeded(endurance, messages=9, mebibytes=50) == ""
    assert exceeded(endurance, messages=10) == "messages"
    assert exceeded(endurance, mebibytes=51) == "memory"


def test_nothing_counts_before_it_has_lived_for_a_while():
    endurance = Endurance(messages=10, memory_mb=50, least_seconds=60, patience=1)

    assert exceeded(endurance, messages=1000, seconds=59.9, mebibytes=1000) == ""


@pytest.mark.parametrize("seconds", [61, 1e9])
def test_zero_is_no_bound(seconds):
    endurance = Endurance(messages=0, memory_mb=0, least_seconds=60)

    assert endurance.is_endless
    assert endurance.exceeded(10**9, seconds, never_asked) == ""


def test_processes_that_start_together_do_not_leave_together():
    bear = {
        next(messages for messages in range(10_000) if exceeded(Endurance(1000, 0, 0), messages)) for _ in range(20)
    }

    assert len(bear) > 5
    assert 1000 <= min(bear) <= max(bear) <= 1000 * (1 + MOST_PATIENCE)
