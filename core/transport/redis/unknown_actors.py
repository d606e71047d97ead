"""Messages for actors that this process does not have: left to a process that has them, or ended if none does.

During a deploy a queue holds messages of two releases. What another process knows is put back after a short pause; what
nobody has known for a while is dropped if the ledger has its run, and otherwise set aside as a dead letter. Nothing is
decided while PostgreSQL cannot be asked who knows what.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import redis
from dramatiq.message import Message

from core.database import DATABASE_AWAY
from core.ledger.releases import Fleet
from core.observability import metrics
from core.transport.messages import RUN_ID

if TYPE_CHECKING:
    from core.transport.redis.broker import RotaBroker

logger = logging.getLogger(__name__)

#: How long a message is held before it is put back: long enough not to be a busy loop, short enough for its latency.
PAUSE_SECONDS = 0.5
#: More are not fetched until these are gone.
MOST_HELD = 1000


class Strangers:
    """One thread that holds such messages for a moment and then decides."""

    def __init__(self, broker: "RotaBroker", ask: Callable[[], Fleet], grace_seconds: float) -> None:
        self._broker = broker
        self._ask = ask
        self._grace_seconds = grace_seconds
        self._held: list[tuple[str, Message[Any]]] = []
        self._unknown_since: dict[str, float] = {}
        self._lock = threading.Lock()
        self._come = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_room(self) -> bool:
        """Whether more may be fetched."""
        return len(self._held) < MOST_HELD

    def take(self, queue_name: str, message: Message[Any]) -> None:
        """Hold a fetched message."""
        with self._lock:
            self._held.append((queue_name, message))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rota-strangers", daemon=True)
                self._thread.start()
        self._come.set()

    def stop(self) -> None:
        """Put back what is held, if Redis is there."""
        self._stopping.set()
        self._come.set()
        if self._thread is not None:
            self._thread.join(PAUSE_SECONDS * 10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._come.wait()
            self._come.clear()
            self._stopping.wait(PAUSE_SECONDS)
            with self._lock:
                held, self._held = self._held, []
            try:
                self._decide(held)
            except (redis.RedisError, OSError) as error:
                logger.warning("messages.not_put_back messages=%s: %s; trying again", len(held), error)
                self._hold_on(held)
            except Exception:  # a background loop outlives its errors
                logger.exception("messages.not_decided messages=%s: trying again", len(held))
                self._hold_on(held)

    def _hold_on(self, held: list[tuple[str, Message[Any]]]) -> None:
        with self._lock:
            self._held = held + self._held
        self._come.set()

    def _decide(self, held: Sequence[tuple[str, Message[Any]]]) -> None:
        fleet = None if self._stopping.is_set() else self._fleet()
        back: dict[str, list[str]] = {}
        for queue_name, message in held:
            if fleet is None or not self._is_orphan(message, fleet):
                back.setdefault(queue_name, []).append(message.options["redis_message_id"])
            else:
                self._end(queue_name, message)
        for queue_name, redis_ids in back.items():
            self._broker.do_requeue(queue_name, *redis_ids)
            self._broker.held(queue_name).difference_update(redis_ids)

    def _fleet(self) -> Fleet | None:
        """What the fleet knows; None while it cannot be asked."""
        try:
            return self._ask()
        except DATABASE_AWAY:
            return None

    def _is_orphan(self, message: Message[Any], fleet: Fleet) -> bool:
        if fleet.knows(message.actor_name):
            self._unknown_since.pop(message.actor_name, None)
            return False
        if RUN_ID in message.options:
            return True  # costs nothing if the job returns: the ledger sends the run again
        now = time.monotonic()
        return now - self._unknown_since.setdefault(message.actor_name, now) >= self._grace_seconds

    def _end(self, queue_name: str, message: Message[Any]) -> None:
        job, redis_id = message.actor_name, message.options["redis_message_id"]
        self._broker.held(queue_name).discard(redis_id)
        if RUN_ID in message.options:
            logger.info(
                "message.dropped job=%s queue=%s: no live process has it, the ledger has its run", job, queue_name
            )
            self._broker.do_ack(queue_name, redis_id)
            return
        metrics.message_rejected(queue_name, "orphaned")
        logger.warning("message.orphaned job=%s queue=%s: moved to the dead-letter queue", job, queue_name)
        self._broker.do_nack(queue_name, redis_id)
