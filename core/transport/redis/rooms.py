"""The *room* on a queue is how many messages this process may send to the queue. If it requests more runs, the
dispatcher sends their messages.

The dispatcher stores the window of each queue in Redis (``core/dispatcher/windows.py``). A process that requests few
runs does not read the window: whenever it sends messages, Redis returns the length of the queue, and the process reads
the window only if the queue is long.
"""

import time
from dataclasses import dataclass

import redis

from core.ledger.carrier import MOST_URGENT, MOST_WAITING
from core.transport.redis.queues import Queues

#: Up to this many messages are sent without asking Redis for the window, if the queue had at most this many messages
#: when this process last sent to it.
FEW = 16
#: An answer is used for this many seconds.
USED_SECONDS = 0.25
#: After an error, the process does not ask again for this many seconds.
ERROR_SECONDS = 1.0


@dataclass(slots=True)
class Room:
    """How many more messages may be sent, and until when this number is valid, by the monotonic clock."""

    left: int
    until: float


class Rooms:
    """The room on each queue for messages of this process. Threads that ask at the same time may together get slightly
    too much.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._rooms: dict[tuple[str, bool], Room] = {}

    def take(self, queue: str, wanted: int, *, are_urgent: bool, pending: int = 0) -> int:
        """Return how many of ``wanted`` messages may be sent to ``queue`` now; 0 if Redis does not answer.

        ``pending`` is the number of messages that earlier calls have allowed and that have not been sent yet.
        """
        key, now = (queue, are_urgent), time.monotonic()
        room = self._rooms.get(key)
        if room is None or now >= room.until:
            if wanted + pending <= FEW and self._queues.length_seen(queue, are_urgent=are_urgent) <= FEW:
                return wanted
            room = self._rooms[key] = self._ask(queue, now, pending, are_urgent=are_urgent)
        granted = min(wanted, room.left)
        room.left -= granted
        return granted

    def _ask(self, queue: str, now: float, pending: int, *, are_urgent: bool) -> Room:
        try:
            most, length = self._queues.window(queue, are_urgent=are_urgent)
        except redis.RedisError:
            return Room(0, now + ERROR_SECONDS)
        if most is None:
            most = MOST_URGENT if are_urgent else MOST_WAITING
        return Room(max(most - length - pending, 0), now + USED_SECONDS)
