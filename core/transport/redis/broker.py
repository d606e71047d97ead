"""The broker of every Rota process."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis, dq_name
from dramatiq.message import Message
from dramatiq.middleware import Middleware, MiddlewareError

from core.ledger.releases import Fleet
from core.transport.delivery import Preparation
from core.transport.redis.acks import Acks
from core.transport.redis.consumer import Consumer, Shared
from core.transport.redis.delay_consumer import DelayConsumer
from core.transport.redis.error_log import ErrorLog
from core.transport.redis.intake import Intake, always
from core.transport.redis.queues import Queues
from core.transport.redis.unknown_actors import UnknownActors
from core.transport.redis.urgent import redis_id_of
from core.transport.redis.wakeups import Wakeups
from core.transport.redis.window_consumer import WindowConsumer
from core.transport.reservations import NONE_RESERVED, Reservation
from core.transport.use_work_queue import UseWorkQueue
from core.transport.work_queue import WorkQueue


class RotaBroker(RedisBroker):
    """Dramatiq's Redis broker, which batches acknowledgements and wakes consumers."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        middleware: Sequence[Any] = (),
        ledger_queues: Collection[str] = (),
        may_claim: Callable[[], bool] = always,
        preparation: Preparation | None = None,
        ask_fleet: Callable[[], Fleet] = Fleet,
        orphan_seconds: float = 0,
        reserved: Mapping[str, Reservation] = NONE_RESERVED,
    ) -> None:
        """``ledger_queues`` are the queues of jobs whose runs are in the ledger.

        ``may_claim`` returns whether this process may claim such runs now. ``preparation`` claims runs that threads are
        about to start.

        ``ask_fleet`` returns the jobs of all live processes. It may raise DBAPIError. By default, there are none.
        ``reserved`` has the reserved threads by queue.
        """
        #: The middleware's hooks by signal, without hooks that do nothing.
        self._hooks: dict[str, list[Callable[..., None]]] = {}
        super().__init__(client=client, middleware=[*middleware, UseWorkQueue(reserved)], maintenance_chance=0)
        self.redis_queues = Queues(client, broker_id=self.broker_id, namespace=self.namespace)
        self.error_log = ErrorLog(client)
        self.wakeups = Wakeups(self.redis_queues, self.error_log)
        self.acks = Acks(self.redis_queues, self.error_log)
        self.unknown_actors = UnknownActors(self.redis_queues, ask_fleet, orphan_seconds)
        self.intake = Intake(self.unknown_actors, ledger_queues=ledger_queues, may_claim=may_claim)
        self._shared = Shared(
            queues=self.redis_queues,
            intake=self.intake,
            acks=self.acks,
            wakeups=self.wakeups,
            unknown_actors=self.unknown_actors,
            error_log=self.error_log,
            actors=self.actors,
            preparation=preparation,
        )

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue, as Dramatiq's broker does."""
        self.redis_queues.declare(queue_name)
        super().declare_queue(queue_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of the queue, for a worker or for taking messages one by one."""
        work_queue = self.intake.work_queue
        if work_queue is None:
            return Consumer(self._shared, queue_name, prefetch, timeout)
        if queue_name in self.delay_queues:
            return DelayConsumer(self._shared, queue_name, prefetch, timeout)
        return WindowConsumer(self._shared, queue_name, prefetch, timeout, work_queue)

    def begin_work(self, work_queue: WorkQueue) -> None:
        """Fetch for the threads of ``work_queue`` from now on."""
        self.intake.open(work_queue)

    @property
    def is_draining(self) -> bool:
        """Whether the worker is stopping."""
        return self.intake.is_draining

    def drain(self) -> None:
        """Stop fetching, and make the consumers requeue messages that no thread has started."""
        self.intake.drain()
        self.wakeups.wake_all()

    @property
    def is_drained(self) -> bool:
        """Whether no message is waiting for a thread, and no thread is working on a message."""
        work_queue = self.intake.work_queue
        return work_queue is None or work_queue.empty()

    def add_middleware(self, middleware: Middleware, **where: Any) -> None:
        """Add ``middleware``, as Dramatiq's brokers do."""
        self._hooks = {}
        super().add_middleware(middleware, **where)
        self._hooks = {}

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call the middleware's hooks as Dramatiq does, without hooks that do nothing."""
        name = f"before_{signal}"
        hooks = self._hooks.get(name)
        for hook in hooks if hooks is not None else self._hooks_for(name, self.middleware):
            try:
                hook(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:
                self.logger.critical("Unexpected failure in %s of %r.", name, hook, exc_info=True)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call the middleware's hooks in reverse order as Dramatiq does, without hooks that do nothing."""
        name = f"after_{signal}"
        hooks = self._hooks.get(name)
        for hook in hooks if hooks is not None else self._hooks_for(name, reversed(self.middleware)):
            try:
                hook(self, *args, **kwargs)
            except Exception:
                self.logger.critical("Unexpected failure in %s of %r.", name, hook, exc_info=True)

    def _hooks_for(self, name: str, middleware: Iterable[Middleware]) -> list[Callable[..., None]]:
        nothing = getattr(Middleware, name, None)
        hooks = [getattr(each, name) for each in middleware if getattr(type(each), name, None) is not nothing]
        self._hooks[name] = hooks
        return hooks

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue one message, after ``delay`` milliseconds if given. Raises redis.RedisError."""
        message = message.copy(options={"redis_message_id": redis_id_of(message)})
        if delay is not None:
            message = message.copy(queue_name=dq_name(message.queue_name), options={"eta": current_millis() + delay})
        self.emit_before("enqueue", message, delay)
        self.redis_queues.push({message.queue_name: {message.options["redis_message_id"]: message.encode()}})
        self.emit_after("enqueue", message, delay)
        return message

    def flush(self, queue_name: str) -> None:
        """Drop all messages of a queue, including urgent messages. Raises redis.RedisError."""
        super().flush(queue_name)
        self.redis_queues.drop_urgent(queue_name)

    def close(self) -> None:
        """Send the waiting acknowledgements, stop waiting for tokens, and close the connections."""
        self.unknown_actors.stop()
        self.acks.stop()
        self.wakeups.stop()
        self.client.close()
