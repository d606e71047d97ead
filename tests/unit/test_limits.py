"""Time limits: what interrupts a job, and that nothing of it ever reaches what comes after."""

import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest

from core import limits
from core.errors import TimeLimitExceeded
from core.limits import Watch, limited

FAR = timedelta(hours=1)
SOON = timedelta(milliseconds=20)
#: No test waits longer than this, in seconds.
PATIENCE = 10.0


def nothing() -> None: ...


def never() -> None:
    raise AssertionError("called")


def spin(seconds: float = PATIENCE) -> None:
    """Run Python code and nothing else."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def run_in_threads(*targets: Callable[[], None]) -> None:
    """Run all at once and wait for all; raise what one of them raised."""
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
    """Threads change places every few microseconds, so that races are run many times over."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _nothing_is_left_over() -> Iterator[None]:
    yield
    gc.collect()
    assert not limits._watcher._watches
    assert limits._watcher._thread is None or limits._watcher._thread.is_alive()


def test_a_loop_in_python_is_interrupted_at_the_soft_limit():
    began = time.monotonic()

    with pytest.raises(TimeLimitExceeded), limited(SOON, FAR, on_soft=nothing, on_hard=never):
        spin()

    assert SOON.total_seconds() <= time.monotonic() - began < PATIENCE / 2


def test_a_body_that_ends_in_time_is_left_alone():
    with limited(FAR, FAR, on_soft=never, on_hard=never) as watch:
        spin(0.001)

    assert not watch.exceeded


def test_what_the_body_raises_comes_out_as_it_is():
    with pytest.raises(ValueError, match="mine"), limited(FAR, FAR, on_soft=never, on_hard=never):
        raise ValueError("mine")


def test_a_soft_limit_is_no_ordinary_exception():
    with pytest.raises(TimeLimitExceeded), limited(SOON, FAR, on_soft=nothing, on_hard=never):
        while True:
            with suppress(Exception):
                spin()


def test_each_limit_is_enforced_once_the_soft_one_first():
    calls: list[str] = []
    over = threading.Event()

    def on_hard() -> None:
        calls.append("hard")
        over.set()

    with limited(SOON, 2 * SOON, on_soft=lambda: calls.append("soft"), on_hard=on_hard) as watch:
        with suppress(TimeLimitExceeded):
            spin()
        assert over.wait(PATIENCE)
        with suppress(TimeLimitExceeded):
            spin(0.05)

    assert calls == ["soft", "hard"]
    assert watch.exceeded


def test_a_job_that_swallows_the_soft_limit_meets_the_hard_one():
    over = threading.Event()

    with limited(SOON, 2 * SOON, on_soft=nothing, on_hard=over.set):
        while not over.is_set():
            with suppress(TimeLimitExceeded):
                spin(0.01)


def test_the_limits_are_enforced_by_another_thread():
    threads: list[int] = []

    with suppress(TimeLimitExceeded), limited(SOON, FAR, on_soft=lambda: threads.append(1), on_hard=never):
        spin()

    assert threads == [1]


def test_an_error_in_on_soft_is_logged_and_does_not_stop_the_watcher(caplog: pytest.LogCaptureFixture):
    over = threading.Event()

    def explode() -> None:
        raise OSError("cannot cancel")

    with limited(SOON, 2 * SOON, on_soft=explode, on_hard=over.set):
        with suppress(TimeLimitExceeded):
            spin()
        assert over.wait(PATIENCE)

    assert "limit.not_enforced" in caplog.text
    assert "OSError: cannot cancel" in caplog.text


def test_an_error_in_on_hard_does_not_stop_the_watcher(caplog: pytest.LogCaptureFixture):
    called = threading.Event()

    def explode() -> None:
        called.set()
        raise OSError("cannot exit")

    with limited(SOON, SOON, on_soft=nothing, on_hard=explode):
        with suppress(TimeLimitExceeded):
            spin()
        assert called.wait(PATIENCE)

    with pytest.raises(TimeLimitExceeded), limited(SOON, FAR, on_soft=nothing, on_hard=never):
        spin()
    assert "OSError: cannot exit" in caplog.text


def test_a_shorter_limit_that_comes_later_wakes_the_sleeping_watcher():
    with limited(FAR, FAR, on_soft=never, on_hard=never):
        test_a_loop_in_python_is_interrupted_at_the_soft_limit()


def test_a_watch_that_has_ended_is_enforced_no_more():
    watch = Watch(threading.get_ident(), 0, 0, never, never)

    watch.end()
    watch.enforce()

    assert not watch.exceeded


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

    assert watches[0].exceeded


def test_only_the_thread_that_is_too_slow_is_interrupted():
    interrupted: list[int] = []
    everyone = threading.Barrier(20)

    def slow(number: int) -> None:
        try:
            with limited(SOON * (1 + number % 3), FAR, on_soft=nothing, on_hard=never):
                everyone.wait(PATIENCE)
                spin()
        except TimeLimitExceeded:
            interrupted.append(number)

    def quick() -> None:
        with limited(FAR, FAR, on_soft=never, on_hard=never):
            everyone.wait(PATIENCE)
            spin(0.1)

    run_in_threads(*[lambda n=number: slow(n) for number in range(10)], *[quick] * 10)

    assert sorted(interrupted) == list(range(10))


class Race:
    """Bodies that end just when their limit passes, one after another, for a while."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.random = random.Random(seed)
        self.until = time.monotonic() + seconds
        self.interrupted = self.unharmed = 0

    def __call__(self) -> None:
        while time.monotonic() < self.until:
            try:
                self.one_body()
                self.unharmed += 1
            except TimeLimitExceeded:
                self.interrupted += 1
            spin(0.0002)  # what comes after: an exception here is one that leaked

    def one_body(self) -> None:
        soft = self.random.uniform(0.00005, 0.0005)
        with limited(timedelta(seconds=soft), FAR, on_soft=nothing, on_hard=never):
            spin(soft * self.random.uniform(0.5, 1.5))


@pytest.mark.usefixtures("_eager_threads")
@pytest.mark.parametrize("threads", [1, 8])
def test_a_body_that_ends_at_its_limit_is_interrupted_within_or_not_at_all(threads):
    races = [Race(seed, seconds=1.5) for seed in range(threads)]

    run_in_threads(*races)

    assert sum(race.interrupted for race in races) > 20
    assert sum(race.unharmed for race in races) > 20


@pytest.mark.usefixtures("_eager_threads")
def test_an_interruption_at_the_end_leaves_no_watch_behind():
    """The error is kept, and with it every frame it went through, as a log or a debugger would."""
    kept: list[BaseException] = []
    end = time.monotonic() + 1.5
    rng = random.Random(1)

    def bodies() -> None:
        while time.monotonic() < end:
            soft = rng.uniform(0.00005, 0.0005)
            try:
                with limited(timedelta(seconds=soft), FAR, on_soft=nothing, on_hard=never):
                    spin(soft * rng.uniform(0.9, 1.1))
            except TimeLimitExceeded as error:
                kept.append(error)

    run_in_threads(bodies)

    assert kept
    assert not limits._watcher._watches
