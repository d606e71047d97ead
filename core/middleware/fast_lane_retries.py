"""Retries messages of the fast lane. Delays are exact, and no retry is lost while Redis is away.

The ledger stores the retries of its runs. So an error that reaches this middleware comes from a message of the fast
lane, or from a message of a ledger job that could not become a run.
"""

import threading
from typing import Any

import redis
from dramatiq.broker import Broker
from dramatiq.middleware import Middleware

from core.errors import ArgumentsMisfit, BadArguments
from core.jobs import arguments
from core.observability.events import MessageDead, MessageRetryWaits, emit
from core.transport.messages import RUN_ID
from core.transport.redis.misfits import Misfit, Misfits

#: The wait for Redis before a retry is sent again, in seconds.
SEND_AGAIN_SECONDS = 1.0


class FastLaneRetries(Middleware):
    """Sends a failed message again, after the job's delay, until its retries are used up. Then the message is a dead
    letter.
    """

    def __init__(self, misfits: Misfits | None = None) -> None:
        """``misfits`` gets the messages whose arguments do not fit in this process.

        Without ``misfits``, these messages become dead letters.
        """
        self._misfits = misfits
        self._stopping = threading.Event()

    @property
    def actor_options(self) -> set[str]:
        """The options that an actor may have."""
        return {"max_retries"}

    def before_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Stop waiting for Redis, since an unacknowledged message is delivered again."""
        self._stopping.set()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Send the messages that ``misfits`` still holds, since other workers may run them."""
        if self._misfits is not None:
            self._misfits.stop()

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Retry or dead-letter a message whose actor raised an error."""
        if exception is None or RUN_ID in message.options:
            return
        actor: Any = broker.get_actor(message.actor_name)
        if isinstance(exception, ArgumentsMisfit) and self._misfits is not None:
            message.end_later()
            self._misfits.add(Misfit(message, arguments.form(actor.job)))
            return
        retries = message.options.get("retries", 0)
        if isinstance(exception, BadArguments) or retries >= actor.job.max_retries:
            emit(MessageDead(message.actor_name, message.message_id, retries))
            message.fail()
            return
        retry = message.copy(options={"retries": retries + 1})
        delay = actor.job.delay_after(retries + 1)
        if not self._send(broker, retry, int(delay.total_seconds() * 1000)):
            message.end_later()  # the message stays unacknowledged, so another process gets it and retries it

    def _send(self, broker: Broker, retry: Any, delay_ms: int) -> bool:
        """Send ``retry`` when Redis accepts it. Return False if this process must stop before that."""
        while True:
            try:
                broker.enqueue(retry, delay=delay_ms)
                return True
            except (redis.RedisError, OSError) as error:
                emit(MessageRetryWaits(retry.message_id, str(error)))
            if self._stopping.wait(SEND_AGAIN_SECONDS):
                return False
