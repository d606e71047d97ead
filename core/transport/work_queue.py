"""The work queue of this process's threads: messages that wait for a thread, and messages that threads work on.

This queue replaces the priority queue of Dramatiq's worker. All Rota's actors have the same priority, so the queue is
first in, first out. Threads take items from the queue and report when they have ended, so the queue knows how many
threads are free, how long jobs take and whether the threads are stalled. From this it computes how many messages this
process may fetch: as many as its threads will start within ``AHEAD_SECONDS``, or one per free thread if jobs are long.
If the threads are stalled, waiting messages are requeued for other processes.

The time-out of ``SimpleQueue.get`` is not reliable. If it expires just when another thread takes the item that woke the
waiting thread, the waiting thread waits for ever (``_queuemodule.c`` of CPython 3.11 continues with a negative
time-out). So the end of the queue does not depend on a time-out: a closed queue has an item None, and every thread that
takes this item puts it back.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

#: This many seconds of work are fetched ahead, so that threads never wait for Redis.
AHEAD_SECONDS = 0.05
#: If no thread is free and no thread has started or ended a message for this many seconds, waiting messages are
#: requeued.
STALLED_SECONDS = 0.1
#: Runs that the threads will start within this many seconds are claimed together.
AT_ONCE_SECONDS = 0.01
#: The most runs that are claimed together.
MOST_AT_ONCE = 32
#: The most messages of one queue that wait in a process. The bound keeps each fetch short.
MOST_AHEAD = 512
#: The weight of the latest job in the moving average of durations.
WEIGHT = 0.05
#: A job is assumed to take at least this many seconds.
SHORTEST_JOB = 1e-5
#: A thread waits this many seconds for work before it checks whether it must pause (one second in Dramatiq). ``close``
#: wakes a thread that must end.
IDLE_SECONDS = 10.0
#: How often ``join`` and the threads of a closed queue check whether work is left, in seconds.
LOOK_AGAIN_SECONDS = 0.01


class Item(Protocol):
    """An entry of the work queue."""

    @property
    def message(self) -> Any:
        """Dramatiq's message."""


class Items(Protocol):
    """The waiting items. The item None tells a thread that the queue is closed."""

    def put(self, item: Item | None, /) -> None:
        """Add an item."""

    def get(self, block: bool = True, timeout: float | None = None, /) -> Item | None:
        """Wait for an item. Raises queue.Empty."""

    def get_nowait(self) -> Item | None:
        """Return an item without waiting. Raises queue.Empty."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The number of runs that threads could start now, and the queues that these runs may come from."""

    most: int
    queues: Sequence[str]
    #: Only runs of these jobs may start; None for all jobs.
    jobs: Set[str] | None = None


class Lane:
    """The waiting messages of one queue, and the time that its jobs take."""

    def __init__(self, queue_name: str) -> None:
        self.queue_name = queue_name
        #: Wakes the queue's consumer, if a consumer is attached.
        self.wake: Callable[[], None] = lambda: None
        #: The number of messages that are fetched and not started.
        self.waiting = 0
        #: The consumer is woken when only this many messages are waiting.
        self.wake_at = 0
        #: Whether the consumer was refused room, and must be woken when there is room.
        self.was_refused_room = False
        #: Only messages with at least this priority may be fetched now.
        self.least_priority = 0
        #: The average time for which a message of the queue occupies a thread, in seconds.
        self.pace: float | None = None
        #: The part of that time that the job itself takes, without claim and commit.
        self.job_pace: float | None = None

    def attach(self, wake: Callable[[], None]) -> None:
        """Begin to call ``wake`` to wake the queue's consumer."""
        self.wake = wake


class WorkQueue:
    """A first-in, first-out queue that counts waiting messages and busy threads."""

    def __init__(self, threads: int, items: Items | None = None) -> None:
        self.threads = threads
        self._items: Items = SimpleQueue() if items is None else items
        self._lanes: dict[str, Lane] = {}
        #: The item of each busy thread, and the time since which the thread works on it.
        self._begun: dict[int, tuple[Lane, float, Item]] = {}
        self._waiting = 0
        self._moved_at = float("-inf")
        #: The average duration of jobs of all queues.
        self._pace: float | None = None
        self._when_free: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def lane(self, queue_name: str) -> Lane:
        """Return the lane of a queue."""
        return self._lanes.setdefault(queue_name, Lane(queue_name))

    @property
    def free(self) -> int:
        """The number of idle threads."""
        return self.threads - len(self._begun)

    @property
    def spare(self) -> int:
        """The number of idle threads for which no message is waiting."""
        return max(self.threads - self.unfinished_tasks, 0)

    @property
    def busy_since(self) -> dict[int, float]:
        """The time since which each busy thread works on its item, in monotonic seconds."""
        return {thread: since for thread, (_, since, _) in self._begun.copy().items()}

    def when_free(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` in a thread whenever that thread becomes free. ``tell`` must not raise."""
        self._when_free.append(tell)

    @property
    def is_moving(self) -> bool:
        """Whether a thread has recently started or ended a message."""
        return time.monotonic() - self._moved_at <= STALLED_SECONDS

    def is_stalled(self, lane: Lane) -> bool:
        """Return whether the messages of ``lane`` wait although no thread has recently started or ended a message."""
        return self.free <= 0 and not self.is_moving

    def has_room(self, queue_name: str) -> bool:
        """Return whether more messages of the queue may be fetched."""
        return self.is_moving or self.free > self._waiting

    def reserve(self, lane: Lane) -> int:
        """Return how many messages of ``lane`` may be fetched now, and count them as waiting."""
        with self._lock:
            ahead = self._ahead(lane) - lane.waiting if self.is_moving else 0
            room = min(max(self.free - self._waiting, ahead, 0), MOST_AHEAD)
            lane.was_refused_room = room == 0
            lane.waiting += room
            self._waiting += room
            return room

    def _ahead(self, lane: Lane) -> int:
        """Return how many messages of ``lane`` may wait for a thread.

        If a thread will soon be free, the number is at least one, so that every queue gets its turn.
        """
        least = int(in_time(self._pace, self.threads) >= 1)
        return max(int(in_time(lane.pace, self.threads)), least)

    def begun_at_once(self, lane: Lane) -> int:
        """Return how many claimed runs of ``lane`` the threads would start within ``AT_ONCE_SECONDS``; 0 if jobs take
        longer.
        """
        count = int(in_time(lane.job_pace, self.threads) * AT_ONCE_SECONDS / AHEAD_SECONDS)
        return min(count, MOST_AT_ONCE) if count >= self.threads else 0

    def unreserve(self, lane: Lane, count: int) -> None:
        """Give back ``count`` reserved places whose messages were requeued or did not exist."""
        with self._lock:
            lane.waiting -= count
            self._waiting -= count

    def wake_at(self, lane: Lane, count: int) -> bool:
        """Wake the consumer when only ``count`` messages are waiting. Return whether more than ``count`` are waiting
        now.
        """
        with self._lock:
            lane.wake_at = count
            return lane.waiting > count

    def expect(self, queue_name: str) -> None:
        """Count one more waiting message of a queue. Call this for a message that was not fetched from Redis."""
        with self._lock:
            self.lane(queue_name).waiting += 1
            self._waiting += 1

    def qsize(self) -> int:
        """Return how many items are waiting or being fetched."""
        return self._waiting

    def empty(self) -> bool:
        """Return whether no item is waiting or being worked on."""
        return not self.unfinished_tasks

    def put(self, item: Item) -> None:
        """Add an item that was reserved or expected."""
        self._items.put(item)

    def put_all(self, items: Iterable[Item]) -> None:
        """Add items that were reserved."""
        for item in items:
            self._items.put(item)

    def close(self) -> None:
        """Wake waiting threads, so that they check whether they must end. From then on, ``get`` does not wait."""
        self._items.put(None)

    def get(self, block: bool = True, timeout: float | None = None) -> Item:
        """Return the oldest item. The calling thread is busy with it until ``task_done``.

        Raises queue.Empty if no item comes within ``IDLE_SECONDS``. Dramatiq's ``timeout`` is ignored.
        """
        item = self._items.get(block, IDLE_SECONDS)
        if item is None:
            self._items.put(None)  # so that the next thread finds the end of the queue too
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
        """Remove and return the oldest item, without working on it. Raises queue.Empty."""
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
        """Remove and return all waiting items, without working on them."""
        items = []
        try:
            while True:
                items.append(self.get_nowait())
        except Empty:
            return items

    def take_stalled(self, lane: Lane) -> list[Item]:
        """Remove and return the waiting items that no thread would start soon, for the consumer of a stalled lane."""
        return self.take_waiting()

    def openings(self, queues: Sequence[str]) -> Iterator[Opening]:
        """Yield how many runs of which queues could start.

        The caller must put the runs of one opening on the work queue before it asks for the next opening.
        """
        yield Opening(self.spare, queues)

    def task_done(self) -> None:
        """Record that the calling thread has ended its item."""
        now = time.monotonic()
        lane, began_at, item = self._begun.pop(threading.get_ident())
        self._moved_at = now
        lane.pace = averaged(lane.pace, now - began_at)
        self._pace = averaged(self._pace, now - began_at)
        if item.message.seconds is not None:
            lane.job_pace = averaged(lane.job_pace, item.message.seconds)
        self._wake_refused()
        for tell in self._when_free:
            tell()

    def _wake_refused(self) -> None:
        if self._waiting >= self.free:
            return
        for lane in list(self._lanes.values()):
            if lane.was_refused_room:
                lane.wake()

    @property
    def unfinished_tasks(self) -> int:
        """The number of items that are waiting or being worked on."""
        return self._waiting + len(self._begun)

    def join(self) -> None:
        """Wait until no item is waiting or being worked on. For tests."""
        while self.unfinished_tasks:
            time.sleep(LOOK_AGAIN_SECONDS)


def averaged(average: float | None, latest: float) -> float:
    """Return the moving average after the value ``latest``."""
    return latest if average is None else average + (latest - average) * WEIGHT


def in_time(pace: float | None, threads: int) -> float:
    """Return how many jobs of this duration the threads start within ``AHEAD_SECONDS``; 0 for an unknown duration."""
    return 0 if pace is None else threads * AHEAD_SECONDS / max(pace, SHORTEST_JOB)
