"""Acknowledgements, gathered and sent together."""

import logging
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import redis
from dramatiq.common import current_millis, q_name, xq_name

from core.batching import Batcher
from core.transport.redis.connection import SOCKET_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from core.transport.redis.broker import RotaBroker

logger = logging.getLogger(__name__)

#: Queue, id in Redis, and whether it goes to the dead letters.
Ack = tuple[str, str, bool]

#: Dramatiq's own "ack" (brokers/redis/dispatch.lua), for many: what is no longer ours to acknowledge is left alone.
ACK_MANY = """
for _, id in ipairs(ARGV) do
    if redis.call('srem', KEYS[1], id) == 1 then redis.call('hdel', KEYS[2], id) end
end
"""
#: Its "nack", for many: KEYS acks, bodies, dead letters and their bodies; ARGV time, ids.
NACK_MANY = """
for index = 2, #ARGV do
    if redis.call('srem', KEYS[1], ARGV[index]) == 1 then
        local body = redis.call('hget', KEYS[2], ARGV[index])
        if body then
            redis.call('zadd', KEYS[3], ARGV[1], ARGV[index])
            redis.call('hset', KEYS[4], ARGV[index], body)
            redis.call('hdel', KEYS[2], ARGV[index])
        end
    end
end
"""


class Acks(Batcher[Ack]):
    """Sends the acknowledgements of all consumers of this process."""

    name = "rota-acks"
    most_together = 500
    gather_seconds = 0.005
    again_seconds = 0.5
    stop_seconds = SOCKET_TIMEOUT_SECONDS

    def __init__(self, broker: "RotaBroker") -> None:
        super().__init__()
        self._broker = broker
        self._acks = broker.client.register_script(ACK_MANY)
        self._nacks = broker.client.register_script(NACK_MANY)

    def waiting(self, queue_name: str) -> set[str]:
        """The messages of a queue that are done and whose acknowledgement is not sent yet."""
        return {redis_id for name, redis_id, _ in self._waiting.copy() if name == queue_name}

    def deal_with(self, batch: Sequence[Ack]) -> None:
        """Send ``batch``, a round trip for each queue of it. Raises RedisError."""
        queue_and_fate = itemgetter(0, 2)
        for (queue_name, is_dead), group in groupby(sorted(batch, key=queue_and_fate), key=queue_and_fate):
            self._send(queue_name, [redis_id for _, redis_id, _ in group], is_dead=is_dead)

    def failed(self, error: Exception) -> None:
        """Say so, if it is news."""
        if isinstance(error, (redis.RedisError, OSError)):
            self._broker.trouble.met(error)
        else:
            logger.exception("message.not_acknowledged, trying again")

    def _send(self, queue_name: str, redis_ids: list[str], *, is_dead: bool) -> None:
        namespace, broker_id = self._broker.namespace, self._broker.broker_id
        keys = [f"{namespace}:__acks__.{broker_id}.{queue_name}", f"{namespace}:{queue_name}.msgs"]
        if not is_dead:
            self._acks(keys=keys, args=redis_ids)
            return
        dead = f"{namespace}:{xq_name(q_name(queue_name))}"
        self._nacks(keys=[*keys, dead, f"{dead}.msgs"], args=[current_millis(), *redis_ids])
