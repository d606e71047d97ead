"""Binds what plugins declare to Dramatiq: the broker with its middleware in order, and an actor for each job.

This is also where our units (timedelta, aware instants) become Dramatiq's milliseconds.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dramatiq
from dramatiq.broker import Broker
from dramatiq.message import Message
from dramatiq.middleware import CurrentMessage
from sqlalchemy import Engine

from core import database
from core.enqueue import enqueue
from core.errors import BadArguments
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import runs, slots
from core.ledger.carrier import Carrier, OutgoingRun
from core.ledger.slots import SlotRow
from core.plugins import loading
from core.scheduling.periodic import PeriodicSchedule, nothing
from core.transport.delivery import Delivery
from core.transport.messages import RUN_ID, is_run_id, run_message
from core.transport.redis import RedisCarrier, RotaBroker
from core.worker.executor import RECORDING, Executor

logger = logging.getLogger(__name__)


class JobActor(dramatiq.Actor[..., Any]):
    """A job as Dramatiq sees it. For a job of the ledger, sending means inserting a run; the message comes after."""

    def __init__(
        self,
        job: Job,
        broker: Broker,
        engine: Engine,
        function: Callable[..., Any],
        on_scheduling: Callable[[], None],
        carrier: Carrier,
    ) -> None:
        self.job = job
        self.engine = engine
        self.carrier = carrier
        options: dict[str, Any] = {"max_retries": job.max_retries}
        if job.schedule is not None:
            options["periodic"] = PeriodicSchedule(job.schedule, on_first_question=on_scheduling)
        super().__init__(
            function, broker=broker, actor_name=job.name, queue_name=job.queue, priority=0, options=options
        )  # fmt: skip

    def send_with_options(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        **options: Any,
    ) -> Message[Any]:
        """Send, unless this is a job of the ledger: then insert a run, or the slots for which periodiq calls."""
        if "scheduled_at" in options:
            return self.fire()
        if not self.job.ledger:
            return super().send_with_options(args=args, kwargs=kwargs, delay=delay, **options)
        span = delay if isinstance(delay, timedelta) else timedelta(milliseconds=delay or 0)
        with database.session(self.engine) as session, session.begin():
            run_id = enqueue(session, self.job.name, args=by_name(self.job, args, kwargs or {}), delay=span)
        return run_message(OutgoingRun(run_id, self.job.name, self.job.queue))

    def fire(self) -> Message[Any]:
        """Record the slots that are due, of every job, and send those that nobody else recorded.

        periodiq has asked all jobs before it calls the first that is due; the others then find nothing left to do.
        Never raises, since that would end periodiq's process.
        """
        periodic: PeriodicSchedule = self.options["periodic"]
        if periodic.due:
            due = [(actor.job, SlotRow(slot)) for actor in scheduled(self.broker) for slot in actor.take_due()]
            try:
                self._record(due)
            except Exception as error:  # noqa: BLE001 — the dispatcher makes up for what is missing here
                logger.warning("slot.not_sent slots=%s: %s (the dispatcher will)", len(due), database.brief(error))
        return run_message(OutgoingRun(0, self.job.name, self.job.queue))

    def _record(self, due: Sequence[tuple[Job, SlotRow]]) -> None:
        carries, scopes = self.carrier.carries, loading.current().scopes
        with database.autocommit(self.engine) as connection:
            for outgoing in slots.insert_many(connection, due, carried=carries, scopes=scopes):
                if carries:
                    self.carrier.send(outgoing)
            if not carries:
                runs.announce(connection)

    def take_due(self) -> list[datetime]:
        """The slots of this job that are due, once."""
        periodic: PeriodicSchedule = self.options["periodic"]
        return periodic.take()


def scheduled(broker: Broker) -> Iterator[JobActor]:
    """The actors of ``broker`` that have a schedule."""
    for actor in broker.actors.values():
        if isinstance(actor, JobActor) and "periodic" in actor.options:
            yield actor


def by_name(job: Job, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Positional and keyword arguments as keyword arguments alone. Raises BadArguments."""
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(job.function).parameters)[1:]
    if len(args) > len(names):
        raise BadArguments(f"job {job.name!r} takes at most {len(names)} arguments, and {len(args)} were given")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def ledger_function(job: Job, executor: Executor, actor: Callable[[], JobActor]) -> Callable[..., None]:
    """What a worker calls for a message of a ledger job: the run it names, or a new run if it names none."""

    def work(*args: Any, **kwargs: Any) -> None:
        message: Any = CurrentMessage.get_current_message()
        run_id = message.options.get(RUN_ID) if message is not None else None
        if isinstance(run_id, int) and isinstance(message, Delivery):
            if executor.execute(job, run_id, carried=message) == RECORDING:
                message.end_later()
        elif isinstance(run_id, int):
            executor.execute(job, run_id)
        else:
            actor().send_with_options(args=args, kwargs=kwargs)

    work.__module__, work.__qualname__ = job.function.__module__, job.function.__qualname__
    return work


@dataclass(frozen=True, slots=True)
class ClaimingAhead:
    """Claims the runs that a worker's threads are about to begin with, many in one statement."""

    registry: Registry
    executor: Executor

    def prepare(self, deliveries: Sequence[Delivery]) -> None:
        """Give each delivery its lease, if that can be had together with the others'; if not, its thread will claim."""
        sent = {run_id: delivery for delivery in deliveries if (run_id := self._run_of(delivery)) is not None}
        if len(sent) > 1:
            for lease in self.executor.claim_ahead([(run_id, each.actor_name) for run_id, each in sent.items()]):
                sent[lease.run_id].claimed(lease)

    def _run_of(self, delivery: Delivery) -> int | None:
        run_id = delivery.options.get(RUN_ID)
        job = self.registry.jobs.get(delivery.actor_name)
        is_simple = job is not None and job.ledger and not job.exclusive
        return run_id if is_simple and is_run_id(run_id) else None

    def undo(self, deliveries: Sequence[Delivery]) -> None:
        """Unclaim the runs of deliveries that are requeued."""
        leases = [delivery.lease for delivery in deliveries if delivery.lease is not None]
        if leases:
            self.executor.unclaim(leases)


def fast_function(job: Job, executor: Executor) -> Callable[..., None]:
    """What a worker calls for a message of the fast lane."""

    def work(*args: Any, **kwargs: Any) -> None:
        message: Any = CurrentMessage.get_current_message()
        message_id = message.message_id if message is not None else ""
        dead_letter = message.dead_letter if isinstance(message, Delivery) else nothing
        executor.execute_fast(job, by_name(job, args, kwargs), message_id, dead_letter=dead_letter)

    work.__module__, work.__qualname__ = job.function.__module__, job.function.__qualname__
    return work


def declare(
    broker: Broker,
    registry: Registry,
    engine: Engine,
    executor: Executor,
    on_scheduling: Callable[[], None] = nothing,
    *,
    carrier: Carrier | None = None,
) -> None:
    """Make an actor of every job in ``registry``; ``on_scheduling`` is called when periodiq begins to ask for them.

    ``carrier`` sends the slots for which periodiq calls, by default over ``broker``.
    """
    for job in registry:
        declare_job(broker, job, engine, executor, on_scheduling, carrier=carrier)


def declare_job(
    broker: Broker,
    job: Job,
    engine: Engine,
    executor: Executor,
    on_scheduling: Callable[[], None] = nothing,
    *,
    carrier: Carrier | None = None,
) -> JobActor:
    """Make an actor of ``job``."""
    actor: JobActor
    function = ledger_function(job, executor, lambda: actor) if job.ledger else fast_function(job, executor)
    if carrier is None:
        assert isinstance(broker, RotaBroker), "another broker needs a carrier of its own"
        carrier = RedisCarrier(broker.redis_queues)
    actor = JobActor(job, broker, engine, function, on_scheduling, carrier)
    return actor
