"""The work queue of a process with reserved threads. An item starts only when a thread that its queue may take is free.

Only a process with reserved threads uses this work queue. A thread takes the oldest item that may start. The process
fetches from a queue as many messages as may start. If only the last reserved thread of a queue is left, the process
fetches only urgent messages of the queue.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty

from core.transport.reservations import Occupancy, Reservation, urgency
from core.transport.work_queue import MOST_AHEAD, STALLED_SECONDS, Item, Lane, Opening, WorkQueue


@dataclass(slots=True)
class Entry:
    """A waiting item."""

    item: Item
    queue_name: str
    is_urgent: bool
    since: float


class ReservedItems:
    """The waiting items and the occupied threads of one process, with the methods of ``queue.SimpleQueue``."""

    def __init__(self, threads: int, reserved: Mapping[str, Reservation]) -> None:
        self._reserved = reserved
        self._occupancy = Occupancy.of(threads, reserved)
        #: The waiting items by queue and by whether they are urgent, in the order in which they came.
        self._waiting: dict[tuple[str, bool], deque[Entry]] = {}
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, item: Item | None) -> None:
        """Add an item. None closes the queue: ``get`` then returns None instead of waiting."""
        with self._changed:
            if item is None:
                self._is_closed = True
                self._changed.notify_all()
                return
            entry = self._entry(item)
            self._waiting.setdefault((entry.queue_name, entry.is_urgent), deque()).append(entry)
            self._changed.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> Item | None:
        """Remove and return the oldest item that may start. The calling thread is occupied until ``done``.

        Raises queue.Empty.
        """
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        with self._changed:
            while (entry := self._first()) is None and not self._is_closed:
                left = until - time.monotonic()
                if not block or left <= 0:
                    raise Empty
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            if entry is None:
                return None
            self._occupancy.add(entry.queue_name, 1, is_urgent=entry.is_urgent)
            return self._waiting[entry.queue_name, entry.is_urgent].popleft().item

    def get_nowait(self) -> Item | None:
        """Remove and return the oldest item, without occupying a thread. Raises queue.Empty."""
        with self._changed:
            entries = min(filter(None, self._waiting.values()), key=lambda waiting: waiting[0].since, default=None)
            if entries is None:
                raise Empty
            return entries.popleft().item

    def done(self, item: Item) -> None:
        """Remember that the thread of ``item`` is free."""
        entry = self._entry(item)
        with self._changed:
            self._occupancy.add(entry.queue_name, -1, is_urgent=entry.is_urgent)
            self._changed.notify()

    def remove(self, queue_name: str) -> list[Item]:
        """Remove and return the waiting items of a queue."""
        with self._changed:
            found = [self._waiting.pop((queue_name, is_urgent), deque()) for is_urgent in (True, False)]
            return [entry.item for entries in found for entry in entries]

    def oldest(self, queue_name: str) -> float:
        """Return the time at which the oldest waiting item of a queue came, or infinity if no item is waiting."""
        with self._changed:
            found = [self._waiting.get((queue_name, is_urgent)) for is_urgent in (True, False)]
            return min((entries[0].since for entries in found if entries), default=float("inf"))

    def occupancy(self, waiting: Mapping[str, int]) -> Occupancy:
        """Return the occupancy after these numbers of waiting messages of each queue have also started."""
        with self._changed:
            return self._occupancy.with_more(waiting)

    def _first(self) -> Entry | None:
        """Return the oldest item that may start."""
        heads = (entries[0] for entries in self._waiting.values() if entries)
        may_start = (each for each in heads if self._occupancy.left(each.queue_name, is_urgent=each.is_urgent))
        return min(may_start, key=lambda entry: entry.since, default=None)

    def _entry(self, item: Item) -> Entry:
        message = item.message
        reservation = self._reserved.get(message.queue_name)
        is_urgent = reservation is None or reservation.is_urgent(message.actor_name, urgency(message))
        return Entry(item, message.queue_name, is_urgent, time.monotonic())


class ReservedWorkQueue(WorkQueue):
    """The work queue of a process with reserved threads."""

    def __init__(self, threads: int, reserved: Mapping[str, Reservation]) -> None:
        self._places = ReservedItems(threads, reserved)
        super().__init__(threads, self._places)
        self._reserved = reserved
        #: The time when a thread last started or ended a message: for each queue with a reservation, and for all other
        #: queues together.
        self._moved: dict[str, float] = {}

    def get(self, block: bool = True, timeout: float | None = None) -> Item:
        """Return the oldest item that may start. Raises queue.Empty."""
        item = super().get(block, timeout)
        self._note_move(item)
        return item

    def task_done(self) -> None:
        """Remember that the calling thread has ended its item."""
        _, _, item = self._begun[threading.get_ident()]
        self._note_move(item)
        self._places.done(item)
        super().task_done()

    def reserve(self, lane: Lane) -> int:
        """Return how many messages of ``lane`` may be fetched now, and count them as waiting."""
        with self._lock:
            occupancy, reservation = self._occupancy(), self._reserved.get(lane.queue_name)
            ahead = self._ahead(lane) - lane.waiting if self._moves(lane.queue_name) else 0
            room = min(max(occupancy.left(lane.queue_name, is_urgent=False), ahead, 0), MOST_AHEAD)
            lane.was_refused_room, lane.least_priority = room == 0, 0
            if not room and reservation is not None:
                room, lane.least_priority = occupancy.left(lane.queue_name, is_urgent=True), reservation.priority
            lane.waiting += room
            self._waiting += room
            return room

    def has_room(self, queue_name: str) -> bool:
        """Return whether more messages of the queue may be fetched."""
        return self._moves(queue_name) or self._occupancy().left(queue_name, is_urgent=True) > 0

    def openings(self, queues: Sequence[str]) -> Iterator[Opening]:
        """Yield how many runs of which queues could start.

        The caller must put the runs of one opening on the work queue before it asks for the next opening.
        """
        for queue in [queue for queue in queues if queue in self._reserved]:
            urgent = self._reserved[queue].urgent_jobs
            yield Opening(self._occupancy().queues[queue].reserved_left(is_urgent=True), [queue], urgent)
            yield Opening(self._occupancy().queues[queue].reserved_left(is_urgent=False), [queue])
        yield Opening(self._occupancy().shared_left, queues)

    def is_stalled(self, lane: Lane) -> bool:
        """Return whether messages of ``lane`` wait for a thread, and no thread that they may take becomes free."""
        waits_since = self._places.oldest(lane.queue_name)
        return waits_since < time.monotonic() - STALLED_SECONDS and not self._moves(lane.queue_name)

    def take_stalled(self, lane: Lane) -> list[Item]:
        """Remove and return the waiting items of ``lane``, without working on them."""
        items = self._places.remove(lane.queue_name)
        self.unreserve(lane, len(items))
        return items

    def _wake_refused(self) -> None:
        for lane in list(self._lanes.values()):
            if lane.was_refused_room and self.has_room(lane.queue_name):
                lane.wake()

    def _occupancy(self) -> Occupancy:
        return self._places.occupancy({name: lane.waiting for name, lane in self._lanes.copy().items()})

    def _group(self, queue_name: str) -> str:
        return queue_name if queue_name in self._reserved else ""

    def _note_move(self, item: Item) -> None:
        self._moved[self._group(item.message.queue_name)] = time.monotonic()

    def _moves(self, queue_name: str) -> bool:
        """Return whether a thread that the queue may take has recently started or ended a message."""
        return time.monotonic() - self._moved.get(self._group(queue_name), float("-inf")) <= STALLED_SECONDS
