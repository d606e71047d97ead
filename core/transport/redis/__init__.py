"""Dramatiq's Redis broker with its keys and semantics, and what a service needs beside them.

- A consumer that found its queue empty is woken by a token on ``…:__wake__.<queue>`` instead of sleeping: one blocking
  pop per process covers all its queues. A producer that pushes no token is still found within a second.
- A consumer whose window was full is woken when half of it is free again.
- Messages that cannot be decoded, or are not ours, are dead-lettered and counted; the others go on.
- A dead process's messages are requeued when the dispatcher says so, and by a timer, instead of by chance.
- Acknowledgements are gathered and sent together, so no worker waits for a round trip, nor for Redis when it is away.
  A process that is killed before they are sent has those few messages delivered again: at least once, as ever.
"""

from core.transport.redis.availability import RedisWatch
from core.transport.redis.broker import RotaBroker
from core.transport.redis.carrier import RedisCarrier
from core.transport.redis.connection import REDIS_AWAY, connect, probe
from core.transport.redis.queues import Queues

__all__ = ["REDIS_AWAY", "Queues", "RedisCarrier", "RedisWatch", "RotaBroker", "connect", "probe"]
