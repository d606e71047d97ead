"""How many messages a process may fetch: as many as its threads will begin soon, or one for each free thread if jobs
are long.
"""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty
from types import SimpleNamespace

import pytest

from core.transport import work_queue
from core.transport.work_queue import AHEAD_SECONDS, MOST_AHEAD, STALLED_SECONDS, WorkQueue
from tests.support.eventually import eventually


@dataclass
class Item:
    """A message as a consumer hands it over."""

    queue: str = "default"
    message: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        self.message = SimpleNamespace(queue_name=self.queue, seconds=None)


@dataclass
class Threads:
    """A work queue with a clock that the test sets, and threads that work when the test says so."""

    queue: WorkQueue
    now: float = 1000.0
    is_over: threading.Event = field(default_factory=threading.Event)

    def fetch(self, name: str = "default") -> int:
        """Reserve as a consumer does. Hand over as many messages as were granted."""
        room = self.queue.reserve(self.queue.lane(name))
        self.queue.put_all([Item(name)] * room)
        return room

    def work(self, seconds: float) -> None:
        """Let a new thread take an item, and finish it after this time."""

        def once() -> None:
            self.queue.get(timeout=1).message.seconds = seconds / 2
            self.now += seconds
            self.queue.task_done()

        in_a_thread(once)

    def begin(self, count: int) -> None:
        """Let threads take an item each, and finish it when the test ends."""
        begun = threading.Semaphore(0)

        def take() -> None:
            self.queue.get(timeout=1)
            begun.release()
            self.is_over.wait(60)

        for _ in range(count):
            threading.Thread(target=take, daemon=True).start()
            assert begun.acquire(timeout=10)

    def do(self, jobs: int, seconds: float, name: str = "default") -> None:
        """Work on jobs one after another."""
        for _ in range(jobs):
            self.fetch(name)
            self.work(seconds)
            self.queue.take_waiting()


def in_a_thread(what):
    thread = threading.Thread(target=what)
    thread.start()
    thread.join(10)


@pytest.fixture
def threads(monkeypatch) -> Iterator[Threads]:
    threads = Threads(WorkQueue(8))
    monkeypatch.setattr(work_queue, "time", SimpleNamespace(monotonic=lambda: threads.now))
    yield threads
    threads.is_over.set()


def test_at_first_it_is_one_for_each_thread(threads):
    assert threads.fetch() == 8
    assert threads.fetch() == 0


def test_all_queues_together_have_one_for_each_thread(threads):
    assert threads.fetch("a") == 8
    assert threads.fetch("b") == 0


def test_of_short_jobs_it_is_what_the_threads_begin_in_time(threads):
    threads.do(100, 0.002)

    assert threads.fetch() == pytest.approx(8 * AHEAD_SECONDS / 0.002, abs=2)


def test_of_the_shortest_it_is_bounded(threads):
    threads.do(100, 0.0)

    assert threads.fetch() == MOST_AHEAD


def test_of_long_jobs_it_is_what_can_begin_at_once(threads):
    threads.do(8, 5.0)
    threads.fetch()
    threads.begin(8)

    assert threads.fetch() == 0
    assert threads.queue.lane("default").was_refused_room


def test_a_queue_of_long_jobs_does_not_starve_beside_one_of_short_ones(threads):
    threads.do(100, 0.001, "short")
    threads.do(1, 5.0, "long")
    threads.do(100, 0.001, "short")
    threads.fetch("short")

    assert threads.fetch("long") == 1


def test_it_is_stalled_when_all_are_busy_and_nothing_has_moved_for_a_while(threads):
    threads.fetch()
    threads.begin(8)
    assert not threads.queue.is_stalled(threads.queue.lane("default"))

    threads.now += STALLED_SECONDS + 0.01

    assert threads.queue.is_stalled(threads.queue.lane("default"))
    assert not threads.queue.has_room("default")


def test_a_free_thread_is_no_stall_however_long_nothing_comes(threads):
    threads.fetch()
    threads.begin(7)
    threads.now += 100

    assert not threads.queue.is_stalled(threads.queue.lane("default"))


def test_who_was_refused_is_woken_when_a_thread_is_free(threads):
    woken = []
    threads.queue.lane("default").attach(lambda: woken.append("default"))
    threads.fetch()
    threads.begin(7)
    threads.now += 100
    threads.queue.lane("default").wake_at = -1
    threads.fetch()

    threads.work(1.0)

    assert woken == ["default"]


def test_a_thread_is_spare_if_it_neither_works_nor_has_something_waiting_for_it(threads):
    threads.fetch()
    threads.begin(3)
    threads.queue.take_waiting()
    assert threads.queue.spare == 5

    threads.queue.expect("default")

    assert threads.queue.spare == 4


def test_who_asked_is_told_whenever_a_thread_is_free(threads):
    spare = []
    threads.queue.when_free(lambda: spare.append(threads.queue.spare))
    threads.fetch()
    threads.queue.unreserve(threads.queue.lane("default"), 6)

    threads.work(1.0)
    threads.work(1.0)

    assert spare == [7, 8]


def test_a_consumer_is_woken_once_few_enough_wait(threads):
    woken = []
    lane = threads.queue.lane("default")
    lane.attach(lambda: woken.append(lane.waiting))
    threads.fetch()
    threads.queue.wake_at(lane, 4)
    threads.begin(8)

    assert woken == [4]


def test_what_waits_can_be_taken_back_and_does_not_count_any_more(threads):
    threads.fetch()
    threads.begin(3)

    assert len(threads.queue.take_waiting()) == 5
    assert threads.queue.lane("default").waiting == 0
    assert threads.queue.unfinished_tasks == 3
    with pytest.raises(Empty):
        threads.queue.get_nowait()


def test_runs_are_claimed_ahead_only_if_they_begin_in_a_moment(threads):
    threads.do(100, 0.001)
    lane = threads.queue.lane("default")
    assert threads.queue.begun_at_once(lane) >= 8

    threads.do(100, 0.015)  # half of this time is claim and commit, which claiming ahead would save
    assert threads.queue.begun_at_once(lane) >= 8
    threads.do(100, 0.1)

    assert threads.queue.begun_at_once(lane) == 0


def test_a_waiting_thread_is_told_when_it_is_closed():
    queue, told = WorkQueue(8), threading.Semaphore(0)

    def wait() -> None:
        with pytest.raises(Empty):
            queue.get(timeout=1)
        told.release()

    for _ in range(8):
        threading.Thread(target=wait, daemon=True).start()
    queue.close()

    assert all(told.acquire(timeout=5) for _ in range(8))
    with pytest.raises(Empty):
        queue.get(timeout=1)


def test_what_comes_after_it_is_closed_can_be_taken_back():
    queue = WorkQueue(8)
    queue.lane("default")
    queue.close()
    for _ in range(3):
        queue.expect("default")
        queue.put(Item())

    assert len(queue.take_waiting()) == 3
    assert queue.empty()
    with pytest.raises(Empty):
        queue.get(timeout=1)


def test_nobody_waits_for_ever_whose_time_is_up_as_another_takes_what_woke_it(monkeypatch):
    """Threads take items while their waits time out; see the docstring of ``work_queue``."""
    monkeypatch.setattr(work_queue, "IDLE_SECONDS", 0.002)
    queue, is_over, taken = WorkQueue(8), threading.Event(), []
    queue.lane("default")

    def work() -> None:
        while not is_over.is_set():
            with suppress(Empty):
                taken.append(queue.get(timeout=1))
                queue.task_done()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(500):
        queue.expect("default")
        queue.put(Item())
        is_over.wait(0.002)
    eventually(queue.empty, within=10)
    is_over.set()
    queue.close()
    for thread in threads:
        thread.join(10)

    assert not any(thread.is_alive() for thread in threads)
    assert len(taken) == 500
