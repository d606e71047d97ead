"""When a worker process that does not report to the supervisor is killed."""

import os
from dataclasses import dataclass

import pytest

from core.supervisor.silence import FIRST_WORD_SECONDS, Silence, is_held_by_debugger


@dataclass
class Living:
    """A worker process that is running."""

    alias: str
    silence_seconds: float = 20.0
    pid: int = os.getpid()

    def is_running(self):
        return True


def killed(silence, workers, *, since, until, speaks=()):
    """Return the processes that are killed, and when, with a check each second."""
    found = []
    for now in range(since + 1, until + 1):
        for alias in speaks:
            silence.heard(alias)
        victim = silence.look(workers, float(now))
        found += [(victim.alias, now)] if victim else []
    return found


@pytest.fixture
def silence():
    made = Silence(0.0)
    for alias in "abc":
        made.heard(alias)
    return made


def test_one_that_is_silent_beyond_its_bound_is_killed_and_one_that_speaks_is_not(silence):
    assert killed(silence, [Living("a"), Living("b")], since=0, until=25, speaks="b") == [("a", 21)]


def test_a_pause_of_everything_counts_as_one_look(silence):
    workers = [Living("a")]

    assert killed(silence, workers, since=0, until=10) == []
    assert silence.look(workers, 100_000.0) is None
    assert killed(silence, workers, since=100_000, until=100_010) == [("a", 100_010)]


def test_of_many_that_are_silent_one_is_killed_within_a_bound(silence):
    workers = [Living("a"), Living("b"), Living("c")]

    assert [now for _, now in killed(silence, workers, since=0, until=60)] == [21, 42]


def test_one_that_has_never_spoken_is_given_time_to_start():
    silence = Silence(0.0)

    assert killed(silence, [Living("new")], since=0, until=400) == [("new", int(FIRST_WORD_SECONDS) + 1)]


def test_a_process_that_runs_or_is_gone_is_held_by_no_debugger():
    assert not is_held_by_debugger(os.getpid())
    assert not is_held_by_debugger(2**22 + 1)
