"""The consumer of a worker's queue. It fetches messages that the threads will soon start, and requeues messages that
they will not start soon.
"""

from collections import defaultdict
from contextlib import suppress

import redis
from dramatiq.broker import MessageProxy
from dramatiq.errors import ConnectionClosed

from core.observability.events import WorkerNotDrained, emit
from core.transport.delivery import Delivery
from core.transport.messages import RUN_ID
from core.transport.redis.consumer import Consumer, Shared
from core.transport.work_queue import STALLED_SECONDS, WorkQueue


class WindowConsumer(Consumer):
    """Fetches just enough messages to keep the worker's threads busy."""

    def __init__(self, shared: Shared, queue_name: str, prefetch: int, timeout: int, work_queue: WorkQueue) -> None:
        super().__init__(shared, queue_name, prefetch, timeout)
        self._work_queue = work_queue
        self._lane = work_queue.lane(queue_name)
        self._lane.attach(self.wake)
        #: The consumer fetches more messages when no more than this many are waiting.
        self._fetch_at = 0
        #: The consumer gives more messages to the threads when no more than this many messages are waiting for a
        #: thread.
        self._hand_over_at = 0
        #: Whether the last fetch had messages of runs.
        self._has_runs = True
        #: Messages that are due later, which Dramatiq's thread keeps until then.
        self._delayed: list[Delivery] = []

    @property
    def has_room(self) -> bool:
        """Whether the consumer may fetch more messages."""
        return self.shared.intake.may_fetch(self.queue_name)

    def step(self) -> MessageProxy | None:
        """Fetch messages and give them to the threads, or wait. Return only a message that Dramatiq must delay."""
        if self.shared.intake.is_draining or self._work_queue.is_stalled(self._lane):
            self.requeue_waiting()
        if self.may_find and self._lane.waiting <= self._fetch_at:
            self.fetch()
        if self.message_cache and self._lane.waiting - len(self.message_cache) <= self._hand_over_at:
            self.hand_over()
        elif not self._delayed:
            self.rest()
        return self._delayed.pop() if self._delayed else None

    def fetch(self) -> None:
        """Fetch the messages that the threads will soon start."""
        if not self.has_room:
            self._lane.was_refused_room = True
            return
        self.check_for_strays()
        room, bodies = self._work_queue.reserve(self._lane), []
        if not room:
            return
        self.may_find = False
        try:
            bodies = self.queues.fetch(self.queue_name, room, self._lane.least_priority)
        finally:
            self._work_queue.unreserve(self._lane, room - len(bodies))
        self.message_cache += bodies
        self.may_find |= len(bodies) == room
        self._fetch_at = self._lane.waiting // 2

    def hand_over(self) -> None:
        """Give the fetched messages to the threads."""
        at_once = self._work_queue.begun_at_once(self._lane) if self._has_runs else 0
        count = at_once or len(self.message_cache)
        bodies, self.message_cache = self.message_cache[:count], self.message_cache[count:]
        deliveries = self.made_ready(bodies, at_once=bool(at_once))
        self._work_queue.unreserve(self._lane, len(bodies) - len(deliveries))
        self._work_queue.put_all(deliveries)
        self._hand_over_at = count // 2
        if not self.is_watched():
            self.wake()

    def made_ready(self, bodies: list[bytes | None], *, at_once: bool) -> list[Delivery]:
        """Return the messages in ``bodies`` for the threads.

        If the threads start all of them ``at_once``, claim their runs.

        If Redis fails, requeue as many messages as possible. A later check for strays finds the other messages.
        """
        deliveries: list[Delivery] = []
        try:
            for body in bodies:
                if (delivery := self.take(body)) is not None:
                    deliveries.append(delivery)
            self._has_runs = any(RUN_ID in delivery.options for delivery in deliveries)
            if at_once and self._has_runs and self.shared.preparation is not None:
                self.shared.preparation.prepare(deliveries)
        except BaseException:
            self._work_queue.unreserve(self._lane, len(bodies))
            self.expect_strays()
            with suppress(ConnectionClosed):
                self.requeue(deliveries)
            raise
        return deliveries

    def is_watched(self) -> bool:
        """Return whether the threads have enough messages, and will wake this consumer when they need more."""
        enough = len(self.message_cache) + self._hand_over_at if self.message_cache else self._fetch_at
        return self._work_queue.wake_at(self._lane, enough)

    def take(self, body: bytes | None) -> Delivery | None:
        """Return the message in ``body``, or None if no thread may start it now."""
        message = super().take(body)
        if message is None or message.options.get("eta") is None:
            return message
        self._delayed.append(message)
        return None

    def requeue_waiting(self) -> None:
        """Requeue the waiting messages that no thread of this process would start soon.

        If the worker stops, requeue all waiting messages.

        Raises redis.RedisError if this consumer cannot requeue its own messages.
        """
        self._work_queue.unreserve(self._lane, len(self.message_cache))
        self.requeue_cache()
        by_consumer: dict[Consumer, list[Delivery]] = defaultdict(list)
        is_draining = self.shared.intake.is_draining
        for item in self._work_queue.take_waiting() if is_draining else self._work_queue.take_stalled(self._lane):
            by_consumer[item.message.consumer].append(item.message)
        for consumer, deliveries in by_consumer.items():
            try:
                consumer.requeue(deliveries)
            except ConnectionClosed as error:  # the other consumer requeues them as strays
                if is_draining:
                    emit(WorkerNotDrained(consumer.queue_name, len(deliveries), str(error)))

    def close(self) -> None:
        """Stop waiting for tokens. If the worker stops, requeue messages that came since the last step."""
        super().close()
        if self.shared.intake.is_draining:
            with suppress(redis.RedisError, OSError):  # the dispatcher's maintenance requeues the other messages later
                self.requeue_waiting()

    def rest(self) -> None:
        """Wait for a wake-up. The wait is shorter while there are messages that may have to be requeued."""
        if self.message_cache and not self.is_watched():
            return
        is_waiting = self._lane.waiting > 0
        self.woken.wait(STALLED_SECONDS if is_waiting else self.longest_rest())
