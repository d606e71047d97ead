"""Urgent messages are those of runs with a priority. They wait in a sorted set beside the list of their queue.

The id of an urgent message begins with its priority. So any process that requeues the message knows the priority.
"""

import re
import threading
from collections.abc import Collection, Mapping
from typing import Any

from dramatiq.common import current_millis
from dramatiq.message import Message

from core.jobs.job import HIGHEST_PRIORITY
from core.transport.messages import PRIORITY, new_id

#: The distance between the scores of two priorities in the sorted set: more than the milliseconds since 1970.
LEVEL = 10**13
#: The distance between the scores of two messages of one batch, in milliseconds: the smallest that such large scores
#: allow.
STEP = 1 / 64
IS_URGENT = re.compile(r"[1-9]:")

#: Requeues urgent messages that this process has fetched. KEYS: acks, bodies, sorted set. ARGV: ids with their scores.
REQUEUE = """
for index = 1, #ARGV, 2 do
    if redis.call('srem', KEYS[1], ARGV[index]) == 1 and redis.call('hexists', KEYS[2], ARGV[index]) == 1 then
        redis.call('zadd', KEYS[3], ARGV[index + 1], ARGV[index])
    end
end
"""
#: Requeues the urgent messages of processes that send no heartbeat. KEYS: heartbeats, bodies, sorted set. ARGV: the
#: time of the oldest good heartbeat, the time, the distance of two priorities, the highest priority, and both parts of
#: the name of a process's acks.
RECOVER = """
for _, broker in ipairs(redis.call('zrangebyscore', KEYS[1], 0, ARGV[1])) do
    local acks = ARGV[5] .. broker .. ARGV[6]
    for _, id in ipairs(redis.call('smembers', acks)) do
        local priority = string.match(id, '^([1-9]):')
        if priority then
            redis.call('srem', acks, id)
            if redis.call('hexists', KEYS[2], id) == 1 then
                redis.call('zadd', KEYS[3], string.format('%.0f', (ARGV[4] - priority) * ARGV[3] + ARGV[2]), id)
            end
        end
    end
end
"""
#: Moves urgent messages to the end of the list. KEYS: sorted set, list. ARGV: how many. Returns how many were moved.
DEMOTE = """
local popped = redis.call('zpopmin', KEYS[1], ARGV[1])
for index = 1, #popped, 2 do redis.call('rpush', KEYS[2], popped[index]) end
return #popped / 2
"""


def redis_id_for(options: Mapping[str, Any]) -> str:
    """Return a new id for a message with these options. The id of an urgent message begins with its priority."""
    priority = options.get(PRIORITY)
    return f"{priority}:{new_id()}" if is_priority(priority) else new_id()


def redis_id_of(message: Message[Any]) -> str:
    """Return a new id for ``message``."""
    return redis_id_for(message.options)


def is_priority(value: object) -> bool:
    """Return whether a message with this priority is urgent. Any producer may have written the message."""
    return type(value) is int and 0 < value <= HIGHEST_PRIORITY


def is_urgent(redis_id: str) -> bool:
    """Return whether the message with this id in Redis is urgent."""
    return redis_id[1:2] == ":" and IS_URGENT.match(redis_id) is not None


class Arrivals:
    """Computes the scores by which the messages of this process are sorted."""

    def __init__(self) -> None:
        self._next = 0.0
        self._lock = threading.Lock()

    def scores(self, redis_ids: Collection[str]) -> dict[str, float]:
        """Return the scores of messages that arrive now in this order.

        Messages are sorted by priority, then by arrival.
        """
        with self._lock:
            first = max(float(current_millis()), self._next)
            self._next = first + len(redis_ids) * STEP
        return {
            redis_id: (HIGHEST_PRIORITY - int(redis_id[0])) * LEVEL + first + number * STEP
            for number, redis_id in enumerate(redis_ids)
        }


def bounds(priority: int) -> tuple[int, int]:
    """Return the lowest and the highest score of messages with this priority."""
    lowest = (HIGHEST_PRIORITY - priority) * LEVEL
    return lowest, lowest + LEVEL - 1
