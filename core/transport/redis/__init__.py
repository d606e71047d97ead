"""Dramatiq's Redis broker, with the same keys and semantics, and with additions:

- A consumer whose queue is empty does not poll: a token on ``…:__wake__.<queue>`` wakes it. One blocking pop per
  process waits for the tokens of all its queues. A message without a token is found within a second.
- A consumer whose window was full is woken when half of the window is free again.
- A body that cannot be decoded or is not one of Rota's messages is dead-lettered and counted. It does not stop the
  other messages.
- The dispatcher requeues the messages of a dead process at once. It also requeues messages of processes without a
  heartbeat at regular intervals, while Dramatiq does so at random.
- Acknowledgements are sent in batches, so no thread waits for a round trip, or for Redis when it is away. If a process
  is killed before it sends a batch, the messages of the batch are delivered again: delivery is at least once, as in
  Dramatiq.
"""

from core.transport.redis.availability import RedisWatch
from core.transport.redis.broker import RotaBroker
from core.transport.redis.carrier import RedisCarrier
from core.transport.redis.connection import REDIS_AWAY, connect, probe
from core.transport.redis.queues import Queues

__all__ = ["REDIS_AWAY", "Queues", "RedisCarrier", "RedisWatch", "RotaBroker", "connect", "probe"]
