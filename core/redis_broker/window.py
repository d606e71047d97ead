"""The consumer of a worker's queue: it fetches what the threads will soon begin with, and leaves to others what not."""

from typing import TYPE_CHECKING

from dramatiq.broker import MessageProxy

from core.redis_broker.consumer import Consumer, Delivery
from core.redis_broker.messages import RUN_ID
from core.redis_broker.work_queue import STALLED_SECONDS, WorkQueue

if TYPE_CHECKING:
    from core.redis_broker.broker import RotaBroker


class WindowConsumer(Consumer):
    """Keeps the worker's threads in work."""

    def __init__(
        self, broker: "RotaBroker", queue_name: str, prefetch: int, timeout: int, work_queue: WorkQueue
    ) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        self._work_queue = work_queue
        self._lane = work_queue.lane(queue_name)
        self._lane.wake = self.wake
        #: How few may wait before more are fetched.
        self._fetch_at = 0
        #: Of what was fetched and not begun, how few the threads may have before they are given more.
        self._hand_over_at = 0
        #: Whether runs were among what came last.
        self._has_runs = True
        #: Messages that do not belong on this queue before a time to come, which Dramatiq's thread keeps until then.
        self._delayed: list[Delivery] = []

    @property
    def has_room(self) -> bool:
        """Whether it may fetch more."""
        return bool(self.broker.has_room)

    def step(self) -> MessageProxy | None:
        """Fetch and hand over; or wait. A message that Dramatiq must look at first is returned instead."""
        if self.broker.is_draining or self._work_queue.is_stalled:
            self.leave_to_others()
        if self.may_find and self._lane.waiting <= self._fetch_at:
            self.fetch()
        if self.message_cache and self._lane.waiting - len(self.message_cache) <= self._hand_over_at:
            self.hand_over()
        elif not self._delayed:
            self.rest()
        return self._delayed.pop() if self._delayed else None

    def fetch(self) -> None:
        """Fetch what the threads will soon begin with."""
        if not self.has_room:
            self._lane.is_hungry = True
            return
        self.doubt()
        room, bodies = self._work_queue.reserve(self._lane), []
        if not room:
            return
        self.may_find = False
        try:
            bodies = self.broker.fetch(self.queue_name, room)
        finally:
            self._work_queue.give_back(self._lane, room - len(bodies))
        self.message_cache += bodies
        self.may_find |= len(bodies) == room
        self._fetch_at = self._lane.waiting // 2

    def hand_over(self) -> None:
        """Hand what was fetched to the threads."""
        at_once = self._work_queue.begun_at_once(self._lane) if self._has_runs else 0
        count = at_once or len(self.message_cache)
        bodies, self.message_cache = self.message_cache[:count], self.message_cache[count:]
        deliveries = [delivery for delivery in map(self.take, bodies) if delivery is not None]
        self._work_queue.give_back(self._lane, len(bodies) - len(deliveries))
        self._has_runs = any(RUN_ID in delivery.options for delivery in deliveries)
        if at_once and self._has_runs and self.broker.preparation is not None:
            self.broker.preparation.prepare(deliveries)
        self._work_queue.put_all(deliveries)
        self._hand_over_at = count // 2
        wake_at = len(self.message_cache) + self._hand_over_at if self.message_cache else self._fetch_at
        if not self._work_queue.wake_at(self._lane, wake_at):
            self.wake()

    def take(self, body: bytes | None) -> Delivery | None:
        """The message in ``body``, if it is for the threads."""
        message = super().take(body)
        if message is not None and message.options.get("eta", ...) is not ...:
            self._delayed.append(message)
            return None
        return message

    def leave_to_others(self) -> None:
        """Put back all that waits in this process; nobody would begin with it soon."""
        self._work_queue.give_back(self._lane, len(self.message_cache))
        self.put_back_cache()
        by_consumer: dict[Consumer, list[Delivery]] = {}
        for item in self._work_queue.take_back():
            by_consumer.setdefault(item.message.consumer, []).append(item.message)
        for consumer, deliveries in by_consumer.items():
            consumer.requeue(deliveries)

    def rest(self) -> None:
        """Wait to be woken; look again soon if something waits that may have to be left to others."""
        is_waiting = self._lane.waiting > 0
        self.woken.wait(STALLED_SECONDS if is_waiting else self.broker.longest_rest(self.timeout))
