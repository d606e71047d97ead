"""How much a process may fetch: what its threads begin soon, and one for each free thread if jobs are long."""

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
    """What a consumer hands over."""

    queue: str = "default"
    message: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        self.message = SimpleNamespace(queue_name=self.queue, seconds=None)


@dataclass
class Hands:
    """A work queue, the clock it reads, and threads that do as they are told."""

    queue: WorkQueue
    now: float = 1000.0
    is_over: threading.Event = field(default_factory=threading.Event)

    def fetch(self, name: str = "default") -> int:
        """Reserve as a consumer does, and hand over as many."""
        room = self.queue.reserve(self.queue.lane(name))
        self.queue.put_all([Item(name)] * room)
        return room

    def work(self, seconds: float) -> None:
        """A thread of its own takes an item and is done with it after so long."""

        def once() -> None:
            self.queue.get(timeout=1).message.seconds = seconds / 2
            self.now += seconds
            self.queue.task_done()

        in_a_thread(once)

    def begin(self, count: int) -> None:
        """So many threads take an item each, and are not done with it until the test ends."""
        begun = threading.Semaphore(0)

        def take() -> None:
            self.queue.get(timeout=1)
            begun.release()
            self.is_over.wait(60)

        for _ in range(count):
            threading.Thread(target=take, daemon=True).start()
            assert begun.acquire(timeout=10)

    def do(self, jobs: int, seconds: float, name: str = "default") -> None:
        """One job after another."""
        for _ in range(jobs):
            self.fetch(name)
            self.work(seconds)
            self.queue.take_back()


def in_a_thread(what):
    thread = threading.Thread(target=what)
    thread.start()
    thread.join(10)


@pytest.fixture
def hands(monkeypatch) -> Iterator[Hands]:
    hands = Hands(WorkQueue(8))
    monkeypatch.setattr(work_queue, "time", SimpleNamespace(monotonic=lambda: hands.now))
    yield hands
    hands.is_over.set()


def test_at_first_it_is_one_for_each_thread(hands):
    assert hands.fetch() == 8
    assert hands.fetch() == 0


def test_all_queues_together_have_one_for_each_thread(hands):
    assert hands.fetch("a") == 8
    assert hands.fetch("b") == 0


def test_of_short_jobs_it_is_what_the_threads_begin_in_time(hands):
    hands.do(100, 0.002)

    assert hands.fetch() == pytest.approx(8 * AHEAD_SECONDS / 0.002, abs=2)


def test_of_the_shortest_it_is_bounded(hands):
    hands.do(100, 0.0)

    assert hands.fetch() == MOST_AHEAD


def test_of_long_jobs_it_is_what_can_begin_at_once(hands):
    hands.do(8, 5.0)
    hands.fetch()
    hands.begin(8)

    assert hands.fetch() == 0
    assert hands.queue.lane("default").is_hungry


def test_a_queue_of_long_jobs_does_not_starve_beside_one_of_short_ones(hands):
    hands.do(100, 0.001, "short")
    hands.do(1, 5.0, "long")
    hands.do(100, 0.001, "short")
    hands.fetch("short")

    assert hands.fetch("long") == 1


def test_it_is_stalled_when_all_are_busy_and_nothing_has_moved_for_a_while(hands):
    hands.fetch()
    hands.begin(8)
    assert not hands.queue.is_stalled

    hands.now += STALLED_SECONDS + 0.01

    assert hands.queue.is_stalled
    assert not hands.queue.has_room


def test_a_free_thread_is_no_stall_however_long_nothing_comes(hands):
    hands.fetch()
    hands.begin(7)
    hands.now += 100

    assert not hands.queue.is_stalled


def test_who_was_refused_is_woken_when_a_thread_is_free(hands):
    woken = []
    hands.queue.lane("default").wake = lambda: woken.append("default")
    hands.fetch()
    hands.begin(7)
    hands.now += 100
    hands.queue.lane("default").wake_at = -1
    hands.fetch()

    hands.work(1.0)

    assert woken == ["default"]


def test_a_consumer_is_woken_once_few_enough_wait(hands):
    woken = []
    lane = hands.queue.lane("default")
    lane.wake = lambda: woken.append(lane.waiting)
    hands.fetch()
    hands.queue.wake_at(lane, 4)
    hands.begin(8)

    assert woken == [4]


def test_what_waits_can_be_taken_back_and_does_not_count_any_more(hands):
    hands.fetch()
    hands.begin(3)

    assert len(hands.queue.take_back()) == 5
    assert hands.queue.lane("default").waiting == 0
    assert hands.queue.unfinished_tasks == 3
    with pytest.raises(Empty):
        hands.queue.get_nowait()


def test_runs_are_claimed_ahead_only_if_they_begin_in_a_moment(hands):
    hands.do(100, 0.001)
    lane = hands.queue.lane("default")
    assert hands.queue.begun_at_once(lane) >= 8

    hands.do(100, 0.015)  # half of it claim and commit, which claiming ahead would spare
    assert hands.queue.begun_at_once(lane) >= 8
    hands.do(100, 0.1)

    assert hands.queue.begun_at_once(lane) == 0


def test_whoever_waits_is_told_when_it_is_closed():
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

    assert len(queue.take_back()) == 3
    assert queue.empty()
    with pytest.raises(Empty):
        queue.get(timeout=1)


def test_nobody_waits_for_ever_whose_time_is_up_as_another_takes_what_woke_it(monkeypatch):
    """Threads take what comes while their waits run out; see the module's docstring."""
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
