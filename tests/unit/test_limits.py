"""Time limits: how a job is interrupted, and that an interruption never reaches code that runs after the job."""

import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from core.errors import AttemptLost, TimeLimitExceeded
from core.worker import interruption
from core.worker.interruption import Watch, limited
from tests.support.threads import no_threads_to_give

FAR = timedelta(hours=1)
SOON = timedelta(milliseconds=20)
#: No test waits longer than this, in seconds.
PATIENCE = 10.0


def nothing() -> None: ...


def never() -> None:
    raise AssertionError("called")


def spin(seconds: float = PATIENCE) -> None:
    """Run only Python code for this many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def run_in_threads(*targets: Callable[[], None]) -> None:
    """Run all functions in threads at once, and wait for them. Raise an error of one of them."""
    errors: list[BaseException] = []

    def guarded(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 — an interruption that leaked is one too
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[target], daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.fixture
def _eager_threads() -> Iterator[None]:
    """Let threads switch every few microseconds, so that races occur often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _nothing_is_left_over() -> Iterator[None]:
    yield
    assert not interruption._watcher._watches
    assert interruption._watcher._thread is None or interruption._watcher._thread.is_alive()


def hold(
    body: Callable[[], Any],
    soft: timedelta = FAR,
    hard: timedelta = FAR,
    *,
    on_soft: Callable[[], None] = nothing,
    on_hard: Callable[[], None] = never,
) -> Any:
    return limited(soft, hard, on_soft=on_soft, on_hard=on_hard).hold(body)


def test_a_loop_in_python_is_interrupted_at_the_soft_limit():
    began = time.monotonic()

    with pytest.raises(TimeLimitExceeded):
        hold(spin, SOON)

    assert SOON.total_seconds() <= time.monotonic() - began < PATIENCE / 2


def test_a_body_that_ends_in_time_is_left_alone_and_returns_its_value():
    watch = limited(FAR, FAR, on_soft=never, on_hard=never)

    assert watch.hold(lambda: "done") == "done"
    assert watch.cause is None


def test_what_the_body_raises_comes_out_as_it_is():
    def body() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        hold(body)


def test_a_soft_limit_is_no_ordinary_exception():
    def body() -> None:
        while True:
            with suppress(Exception):
                spin()

    with pytest.raises(TimeLimitExceeded):
        hold(body, SOON)


def test_each_limit_is_enforced_once_the_soft_one_first():
    calls: list[str] = []
    over = threading.Event()

    def on_hard() -> None:
        calls.append("hard")
        over.set()

    def body() -> None:
        with suppress(TimeLimitExceeded):
            spin()
        assert over.wait(PATIENCE)
        spin(0.05)

    watch = limited(SOON, 2 * SOON, on_soft=lambda: calls.append("soft"), on_hard=on_hard)
    watch.hold(body)

    assert calls == ["soft", "hard"]
    assert watch.cause is TimeLimitExceeded


def test_a_job_that_swallows_the_soft_limit_meets_the_hard_one():
    over = threading.Event()

    def body() -> None:
        while not over.is_set():
            with suppress(TimeLimitExceeded):
                spin(0.01)

    hold(body, SOON, 2 * SOON, on_hard=over.set)

    assert over.is_set()


def test_equal_limits_are_both_enforced():
    calls: list[str] = []
    over = threading.Event()

    def body() -> None:
        with suppress(TimeLimitExceeded):
            spin()
        assert over.wait(PATIENCE)

    hold(body, SOON, SOON, on_soft=lambda: calls.append("soft"), on_hard=over.set)

    assert calls == ["soft"]


class Mortal:
    """An object whose end a weak reference can report."""


def test_an_interruption_that_strikes_where_python_swallows_it_is_raised_again():
    struck: list[str] = []

    def callback(_: object) -> None:
        struck.append("began")
        spin(0.1)
        struck.append("was not interrupted")

    def body() -> None:
        mortal = Mortal()
        reference = weakref.ref(mortal, callback)
        del mortal
        assert reference() is None
        spin()

    began = time.monotonic()
    with pytest.raises(TimeLimitExceeded):
        hold(body, SOON)

    assert struck == ["began"], "it struck within the callback"
    assert time.monotonic() - began < PATIENCE / 2


def test_a_cancellation_that_hangs_holds_up_no_other_limit_and_is_told():
    go_on = threading.Event()
    watches: list[Watch] = []

    def hung() -> None:
        watches.append(limited(SOON, FAR, on_soft=lambda: go_on.wait(), on_hard=never))
        with suppress(TimeLimitExceeded):
            watches[0].hold(spin)

    began = time.monotonic()
    run_in_threads(hung, test_a_loop_in_python_is_interrupted_at_the_soft_limit)

    assert time.monotonic() - began < interruption.CANCEL_SECONDS + PATIENCE / 2
    assert watches[0].is_cancelling
    go_on.set()


def test_the_limits_are_enforced_in_another_thread():
    threads: list[int] = []

    with suppress(TimeLimitExceeded):
        hold(spin, SOON, on_soft=lambda: threads.append(threading.get_ident()))

    assert threads
    assert threads != [threading.get_ident()]


def explode() -> None:
    raise OSError("cannot do that")


def test_an_error_in_on_soft_is_logged_and_the_hard_limit_still_enforced(caplog: pytest.LogCaptureFixture):
    over = threading.Event()

    def body() -> None:
        with suppress(TimeLimitExceeded):
            spin()
        assert over.wait(PATIENCE)

    hold(body, SOON, 2 * SOON, on_soft=explode, on_hard=over.set)

    assert "limit.not_enforced" in caplog.text
    assert "OSError: cannot do that" in caplog.text


def test_an_error_in_on_hard_does_not_stop_the_watcher(caplog: pytest.LogCaptureFixture):
    called = threading.Event()

    def on_hard() -> None:
        called.set()
        explode()

    def body() -> None:
        with suppress(TimeLimitExceeded):
            spin()
        assert called.wait(PATIENCE)

    hold(body, SOON, SOON, on_hard=on_hard)

    with pytest.raises(TimeLimitExceeded):
        hold(spin, SOON)
    assert "OSError: cannot do that" in caplog.text


def refuse_threads(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Raise the error that Python raises if a process has too many threads."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_where_no_thread_can_be_had_to_cancel_the_job_is_interrupted_and_the_hard_limit_still_enforced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    over = threading.Event()
    refuse_threads(monkeypatch, "rota-cancel")

    def body() -> None:
        with suppress(TimeLimitExceeded):
            spin()
        assert over.wait(PATIENCE)

    hold(body, SOON, 2 * SOON, on_hard=over.set)

    assert "can't start new thread" in caplog.text


def test_a_watcher_that_was_started_before_the_first_job_needs_no_other_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interruption, "_watcher", interruption.Watcher())
    interruption.start()

    with no_threads_to_give():
        assert hold(lambda: "done") == "done"


def test_a_watcher_that_could_not_be_started_is_started_for_the_next_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interruption, "_watcher", interruption.Watcher())
    with monkeypatch.context() as patch:
        refuse_threads(patch, "rota-limits")
        with pytest.raises(RuntimeError, match="can't start new thread"):
            hold(never)

    test_a_loop_in_python_is_interrupted_at_the_soft_limit()


def test_whatever_goes_wrong_with_one_watch_the_others_are_enforced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    called = threading.Event()

    def fail(*_: object) -> None:
        called.set()
        explode()

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "_raise", fail)
        hold(lambda: called.wait(PATIENCE), SOON)

    test_a_loop_in_python_is_interrupted_at_the_soft_limit()
    assert "OSError: cannot do that" in caplog.text


def test_a_shorter_limit_that_comes_later_wakes_the_sleeping_watcher():
    hold(test_a_loop_in_python_is_interrupted_at_the_soft_limit, FAR)


def test_a_longer_limit_outlives_shorter_ones_that_came_after_it():
    def body() -> None:
        with suppress(TimeLimitExceeded):
            run_in_threads(lambda: hold(spin, SOON))
        spin()

    with pytest.raises(TimeLimitExceeded):
        hold(body, 10 * SOON)


def test_a_watch_that_has_ended_is_enforced_no_more():
    watch = Watch(threading.get_ident(), 0, 0, never, never)

    watch.end()
    watch.enforce()

    assert watch.cause is None


def test_an_exception_that_has_not_arrived_is_taken_back_when_the_body_ends():
    blocked, ended = threading.Event(), threading.Lock()
    ended.acquire()
    watches: list[Watch] = []

    def body() -> None:
        watches.append(Watch(threading.get_ident(), 0, FAR.total_seconds(), nothing, never))
        blocked.set()
        ended.acquire()  # a call into C, which is not interrupted
        spin(0.01)

    def interrupt() -> None:
        assert blocked.wait(PATIENCE)
        [watch] = watches
        watch.enforce()
        watch.end()
        ended.release()

    run_in_threads(body, interrupt)

    assert watches[0].cause is TimeLimitExceeded


def test_only_the_threads_that_are_too_slow_are_interrupted():
    interrupted: list[int] = []
    everyone = threading.Barrier(20)

    def slow(number: int) -> None:
        everyone.wait(PATIENCE)
        try:
            hold(spin, SOON * (1 + number % 3))
        except TimeLimitExceeded:
            interrupted.append(number)

    def quick() -> None:
        everyone.wait(PATIENCE)
        hold(lambda: spin(0.1), on_soft=never)

    run_in_threads(*[partial(slow, number) for number in range(10)], *[quick] * 10)

    assert sorted(interrupted) == list(range(10))


class Race:
    """For a while, runs bodies one after another that end at about the time of their limit."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.until = time.monotonic() + 3
        self.unharmed = 0
        #: Keeps errors with their frames, as a log or a debugger would.
        self.errors: list[TimeLimitExceeded] = []

    def __call__(self) -> None:
        while time.monotonic() < self.until:
            soft = self.random.uniform(0.00005, 0.0005)
            seconds = soft * self.random.uniform(0.5, 1.5)
            try:
                hold(lambda seconds=seconds: spin(seconds), timedelta(seconds=soft))
                self.unharmed += 1
            except TimeLimitExceeded as error:
                self.errors.append(error)
            spin(0.0002)  # an exception here has leaked from the interrupted body


@pytest.mark.usefixtures("_eager_threads")
@pytest.mark.parametrize("threads", [1, 8])
def test_a_body_that_ends_at_its_limit_is_interrupted_within_or_not_at_all(threads):
    races = [Race(seed) for seed in range(threads)]

    run_in_threads(*races)

    assert sum(len(race.errors) for race in races) > 10
    assert sum(race.unharmed for race in races) > 20
    assert not interruption._watcher._watches


def test_a_lost_attempt_is_interrupted_once_and_no_longer_counts_as_a_job_at_work():
    begun, disconnected = threading.Event(), threading.Event()
    seen: list[bool] = []

    def body() -> None:
        begun.set()
        with suppress(AttemptLost):
            spin()
        thread = threading.get_ident()
        seen.append(thread in interruption.threads_in_jobs() or thread not in interruption.outside_since())
        with suppress(AttemptLost):
            spin(0.5)

    def attempt() -> None:
        watch = limited(FAR, FAR, on_soft=never, on_hard=never, on_lost=disconnected.set, token=4711)
        watch.hold(body)
        assert watch.is_lost

    def lose() -> None:
        assert begun.wait(PATIENCE)
        assert interruption.interrupt({4712}, AttemptLost) == 0
        assert [interruption.interrupt({4711}, AttemptLost) for _ in range(3)] == [1, 0, 0]

    run_in_threads(attempt, lose)

    assert seen == [False]
    assert disconnected.is_set()


def test_a_lost_lease_comes_after_a_soft_limit_and_not_the_other_way_round():
    def body() -> None:
        with pytest.raises(TimeLimitExceeded):
            spin()
        interruption.interrupt({4711}, AttemptLost)
        spin()

    watch = limited(SOON, FAR, on_soft=nothing, on_hard=never, token=4711)
    with pytest.raises(AttemptLost):
        watch.hold(body)
    assert not watch.interrupt(TimeLimitExceeded)
