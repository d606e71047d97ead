"""The work queue of this process's threads: the messages that wait for a thread, and those that threads work on.

It stands where Dramatiq's worker has a priority queue. All our actors have the same priority, so first come, first
served; and since threads fetch their work here and say when it is done, it knows how many are free, how long jobs take
and whether anything moves at all. That decides how many messages this process may fetch: what its threads will have
begun within ``AHEAD_SECONDS``, or one for each free thread if jobs are long. What waits although nothing moves is left
to other processes.

A time-out of ``SimpleQueue`` is not to be relied upon: a thread whose time is up in the moment in which another takes
what woke it then waits for ever (``_queuemodule.c`` of CPython 3.11 goes on with a negative time-out). So there is
an item for every thread that waits on a queue that is closed.
"""

import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

#: Work for this long is fetched ahead, so that threads never wait for Redis, in seconds.
AHEAD_SECONDS = 0.05
#: Nothing was begun or done for this long, and no thread is free: what waits is left to other processes, in seconds.
STALLED_SECONDS = 0.1
#: Runs that threads begin within this time are claimed together, and so many at most, in seconds.
AT_ONCE_SECONDS = 0.01
MOST_AT_ONCE = 32
#: The most messages of one queue that wait in a process, so that a fetch stays short.
MOST_AHEAD = 512
#: How much the latest job counts in the average of how long jobs take.
WEIGHT = 0.05
#: A job is taken to last at least this long, in seconds.
SHORTEST_JOB = 1e-5
#: How long a thread waits for work before it looks whether it is to pause, in seconds; Dramatiq has it wake every
#: second. If it is to end, ``close`` wakes it.
IDLE_SECONDS = 10.0
#: How often ``join`` looks, and a thread of a queue that is closed, in seconds.
LOOK_AGAIN_SECONDS = 0.01


class Item(Protocol):
    """An entry of the work queue."""

    @property
    def message(self) -> Any:
        """Dramatiq's message."""


class Lane:
    """The messages of one queue that wait here, and how long they take."""

    def __init__(self) -> None:
        #: Tells the queue's consumer, if one is attached, that there is something for it to do.
        self.wake: Callable[[], None] = lambda: None
        #: Fetched and not begun.
        self.waiting = 0
        #: When no more than this many wait, the consumer is woken.
        self.wake_at = 0
        #: Whether the consumer was refused room, and is to be woken when there is some.
        self.was_refused_room = False
        #: How long its messages keep a thread, on average, in seconds.
        self.pace: float | None = None
        #: How long of that the jobs of runs take by themselves, without claim and commit.
        self.job_pace: float | None = None

    def attach(self, wake: Callable[[], None]) -> None:
        """Wake the queue's consumer by ``wake`` from now on."""
        self.wake = wake


class WorkQueue:
    """First come, first served; counts what waits and who is busy."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        #: None: it is closed.
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._lanes: dict[str, Lane] = {}
        #: What each busy thread works on, and since when.
        self._begun: dict[int, tuple[Lane, float, Item]] = {}
        self._waiting = 0
        self._moved_at = float("-inf")
        #: How long jobs take, whatever their queue.
        self._pace: float | None = None
        self._when_free: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def lane(self, queue_name: str) -> Lane:
        """The lane of a queue."""
        return self._lanes.setdefault(queue_name, Lane())

    @property
    def free(self) -> int:
        """How many threads have nothing to do."""
        return self.threads - len(self._begun)

    @property
    def spare(self) -> int:
        """How many threads neither work nor are about to."""
        return max(self.threads - self.unfinished_tasks, 0)

    def when_free(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` whenever a thread has become free, in that thread; it must not raise."""
        self._when_free.append(tell)

    @property
    def is_moving(self) -> bool:
        """Whether a thread has begun or ended something a moment ago."""
        return time.monotonic() - self._moved_at <= STALLED_SECONDS

    @property
    def is_stalled(self) -> bool:
        """Whether every thread is busy and none has begun or ended anything recently."""
        return self.free <= 0 and not self.is_moving

    @property
    def has_room(self) -> bool:
        """Whether more may be fetched."""
        return self.is_moving or self.free > self._waiting

    def reserve(self, lane: Lane) -> int:
        """How many messages of ``lane`` may be fetched now; from here on they count as waiting."""
        with self._lock:
            ahead = self._ahead(lane) - lane.waiting if self.is_moving else 0
            room = min(max(self.free - self._waiting, ahead, 0), MOST_AHEAD)
            lane.was_refused_room = room == 0
            lane.waiting += room
            self._waiting += room
            return room

    def _ahead(self, lane: Lane) -> int:
        """How many may wait: at least one if some thread will soon be free, so that no queue starves beside another."""
        least = int(in_time(self._pace, self.threads) >= 1)
        return max(int(in_time(lane.pace, self.threads)), least)

    def begun_at_once(self, lane: Lane) -> int:
        """How many runs of ``lane`` threads begin with at once or in a moment, if claimed; 0 if jobs take longer."""
        count = int(in_time(lane.job_pace, self.threads) * AT_ONCE_SECONDS / AHEAD_SECONDS)
        return min(count, MOST_AT_ONCE) if count >= self.threads else 0

    def unreserve(self, lane: Lane, count: int) -> None:
        """Make room again for so many, which do not wait any more, or were not there to be fetched."""
        with self._lock:
            lane.waiting -= count
            self._waiting -= count

    def wake_at(self, lane: Lane, count: int) -> bool:
        """Have the consumer woken once no more than ``count`` wait; return whether there are more than that now."""
        with self._lock:
            lane.wake_at = count
            return lane.waiting > count

    def expect(self, queue_name: str) -> None:
        """Count one more of a queue as waiting, which comes by another way than a fetch."""
        with self._lock:
            self.lane(queue_name).waiting += 1
            self._waiting += 1

    def qsize(self) -> int:
        """How many items wait, or are being fetched."""
        return self._waiting

    def empty(self) -> bool:
        """Whether nothing is in hand."""
        return not self.unfinished_tasks

    def put(self, item: Item) -> None:
        """Add an item, which was reserved or expected."""
        self._items.put(item)

    def put_all(self, items: Iterable[Item]) -> None:
        """Add items, which were reserved."""
        for item in items:
            self._items.put(item)

    def close(self) -> None:
        """Have threads that wait look whether they are to end, and wait no more."""
        self._items.put(None)

    def get(self, block: bool = True, timeout: float | None = None) -> Item:
        """Return what has waited longest; the calling thread is busy with it until ``task_done``.

        Raises queue.Empty if there is nothing after a while, which is not Dramatiq's ``timeout``.
        """
        item = self._items.get(block, IDLE_SECONDS)
        if item is None:
            self._items.put(None)  # for the others
            time.sleep(LOOK_AGAIN_SECONDS)
            raise Empty
        lane = self._lanes[item.message.queue_name]
        now = time.monotonic()
        with self._lock:
            self._moved_at = now
            self._begun[threading.get_ident()] = lane, now, item
            self._waiting -= 1
            lane.waiting -= 1
            is_low = lane.waiting == lane.wake_at
        if is_low:
            lane.wake()
        return item

    def get_nowait(self) -> Item:
        """Take what has waited longest, without working on it. Raises queue.Empty."""
        is_closed = False
        try:
            while (item := self._items.get_nowait()) is None:
                is_closed = True
        finally:
            if is_closed:
                self._items.put(None)
        self.unreserve(self._lanes[item.message.queue_name], 1)
        return item

    def take_waiting(self) -> list[Item]:
        """Take all that waits, without working on it."""
        items = []
        try:
            while True:
                items.append(self.get_nowait())
        except Empty:
            return items

    def task_done(self) -> None:
        """The calling thread has done what it got."""
        now = time.monotonic()
        lane, began_at, item = self._begun.pop(threading.get_ident())
        self._moved_at = now
        lane.pace = averaged(lane.pace, now - began_at)
        self._pace = averaged(self._pace, now - began_at)
        if item.message.seconds is not None:
            lane.job_pace = averaged(lane.job_pace, item.message.seconds)
        if self._waiting < self.free:
            self._wake_refused()
        for tell in self._when_free:
            tell()

    def _wake_refused(self) -> None:
        for lane in list(self._lanes.values()):
            if lane.was_refused_room:
                lane.wake()

    @property
    def unfinished_tasks(self) -> int:
        """How many items wait or are worked on."""
        return self._waiting + len(self._begun)

    def join(self) -> None:
        """Wait until nothing is in hand; for tests."""
        while self.unfinished_tasks:
            time.sleep(LOOK_AGAIN_SECONDS)


class UseWorkQueue(Middleware):
    """Gives a worker's threads our work queue, and has idle threads and consumers notice that the worker stops.

    Our brokers add it themselves.
    """

    def before_worker_boot(self, broker: Any, worker: Worker) -> None:
        """Before there are threads and consumers."""
        work_queue = WorkQueue(worker.worker_threads)
        worker.work_queue = work_queue  # type: ignore[assignment]
        broker.begin_work(work_queue)

    def before_worker_shutdown(self, broker: Any, worker: Worker) -> None:
        """Take on nothing more, and have idle threads notice at once that they are to end."""
        broker.drain()
        worker.work_queue.close()  # type: ignore[attr-defined]


def averaged(average: float | None, latest: float) -> float:
    """A moving average with its latest value."""
    return latest if average is None else average + (latest - average) * WEIGHT


def in_time(pace: float | None, threads: int) -> float:
    """How many jobs of that pace so many threads begin in the time that is fetched ahead for; none if it is unknown."""
    return 0 if pace is None else threads * AHEAD_SECONDS / max(pace, SHORTEST_JOB)
