"""Removes the messages of queues that no job uses any more. The queues are found with SCAN, in small steps."""

from collections import Counter
from typing import cast

from dramatiq.common import current_millis, q_name, xq_name

from core.ledger.releases import Fleet
from core.observability import metrics
from core.transport.messages import RUN_ID, NotAMessage, read
from core.transport.redis.fate import Fate, fate
from core.transport.redis.queues import Queues

#: The number of keys in one step of SCAN.
SCAN_COUNT = 500
#: The number of steps in one search. The next search continues where this one ends.
MOST_STEPS = 20
#: The number of messages in one batch.
BATCH = 200
#: The number of batches in one call.
MOST_BATCHES = 20

#: Removes messages from a queue, unless another process has removed them. KEYS: list, bodies, dead letters, their
#: bodies. ARGV: time, ids.
TAKE_OFF = """
    for index = 2, #ARGV do
        if redis.call('lrem', KEYS[1], 1, ARGV[index]) > 0 then
            local body = redis.call('hget', KEYS[2], ARGV[index])
            redis.call('hdel', KEYS[2], ARGV[index])
            if body and KEYS[3] then
                redis.call('zadd', KEYS[3], ARGV[1], ARGV[index])
                redis.call('hset', KEYS[4], ARGV[index], body)
            end
        end
    end
"""

#: The number of messages by actor and fate. A message that was sent to its job's present queue has the fate ``moved``.
Outcome = Counter[tuple[str, str]]


class AbandonedQueues:
    """Finds queues with messages, and clears the queues that no process serves. Each step scans a bounded part of
    Redis.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._cursor = 0
        self._found: set[str] = set()
        self._complete: set[str] = set()
        self._take_off = queues.client.register_script(TAKE_OFF)

    def with_messages(self) -> set[str]:
        """Return the queues that have messages, from the last complete scan and this step.

        Raises redis.RedisError.
        """
        prefix, suffix = self._queues.key(""), ".msgs"
        for _ in range(MOST_STEPS):
            answer = self._queues.client.scan(self._cursor, match=f"{prefix}*{suffix}", count=SCAN_COUNT)
            self._cursor, keys = cast("tuple[int, list[bytes]]", answer)
            names = (key.decode(errors="replace").removeprefix(prefix).removesuffix(suffix) for key in keys)
            self._found |= {q_name(name) for name in names if not name.endswith(".XQ")}
            if self._cursor == 0:
                self._complete, self._found = self._found, set()
                break
        return self._complete | self._found

    def clear(self, queue: str, fleet: Fleet) -> Outcome:
        """Empty ``queue``, including its delayed messages, in bounded batches. Return the numbers of its messages by
        actor and fate.

        ``fleet`` must be complete. Raises redis.RedisError.
        """
        outcome: Outcome = Counter()
        for name in (queue, f"{queue}.DQ"):
            self._queues.maintain_queue(name)  # requeues messages that dead processes had fetched
            for _ in range(MOST_BATCHES):
                self._queues.demote(name)
                if not self._clear_batch(name, fleet, outcome):
                    break
        return outcome

    def _clear_batch(self, name: str, fleet: Fleet, outcome: Outcome) -> bool:
        key, client = self._queues.key(name), self._queues.client
        ids = cast("list[bytes]", client.lrange(key, 0, BATCH - 1))
        if not ids:
            return False
        bodies = cast("list[bytes | None]", client.hmget(f"{key}.msgs", ids))
        dropped: list[bytes] = []
        dead: list[bytes] = []
        for redis_id, body in zip(ids, bodies, strict=True):
            actor, word = self._judge(body, name, fleet)
            outcome[actor, word] += 1
            (dead if word == Fate.ORPHANED else dropped).append(redis_id)
        dead_letters = self._queues.key(xq_name(q_name(name)))
        self._take_off(keys=[key, f"{key}.msgs"], args=[current_millis(), *dropped])
        self._take_off(
            keys=[key, f"{key}.msgs", dead_letters, f"{dead_letters}.msgs"], args=[current_millis(), *dead]
        )  # fmt: skip
        for _ in dead:
            metrics.message_rejected(name, Fate.ORPHANED)
        return True

    def _judge(self, body: bytes | None, name: str, fleet: Fleet) -> tuple[str, str]:
        """Return the actor and the fate of a message.

        If the message's job has another queue now, send the message to that queue.
        """
        try:
            message = read(body, name)
        except NotAMessage:
            return "", Fate.ORPHANED
        found = fate(message, fleet)
        if found != Fate.SERVED:
            return message.actor_name, found
        if RUN_ID in message.options:
            return message.actor_name, Fate.DROPPED  # the ledger sends the run to the present queue
        self._queues.enqueue_many([message.copy(queue_name=min(fleet.queues_of[message.actor_name]))])
        return message.actor_name, "moved"
