"""Binds plugins' jobs to Dramatiq: creates an actor for each job."""

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import dramatiq
from dramatiq.broker import Broker
from dramatiq.message import Message
from dramatiq.middleware import CurrentMessage
from sqlalchemy import Engine

from core import database
from core.enqueue import enqueue
from core.errors import BadArguments
from core.jobs.arguments import judging
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger.carrier import Carrier, OutgoingRun
from core.middleware.execution import RECORDING
from core.scheduling.firing import Firing
from core.scheduling.periodic import nothing
from core.transport.delivery import Delivery
from core.transport.messages import RUN_ID, run_message
from core.worker.executor import Executor


class JobActor(dramatiq.Actor[..., Any]):
    """The actor of a job. For a job of the ledger, ``send`` inserts a run, whose message is sent after the commit."""

    def __init__(self, job: Job, broker: Broker, engine: Engine, function: Callable[..., Any], firing: Firing) -> None:
        self.job = job
        self.engine = engine
        self.firing = firing
        options: dict[str, Any] = {"max_retries": job.max_retries}
        if job.schedule is not None:
            options["periodic"] = firing.add(job)
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
        """Send a message. For a job of the ledger, insert a run instead.

        periodiq calls this method with ``scheduled_at``; then the due slots are inserted.
        """
        if "scheduled_at" in options:
            self.firing.fire()
            return run_message(OutgoingRun(0, self.job.name, self.job.queue))
        if not self.job.ledger:
            return super().send_with_options(args=args, kwargs=kwargs, delay=delay, **options)
        span = delay if isinstance(delay, timedelta) else timedelta(milliseconds=delay or 0)
        run_id = request(self.engine, self.job, args, kwargs or {}, delay=span)
        return run_message(OutgoingRun(run_id, self.job.name, self.job.queue))


def request(
    engine: Engine, job: Job, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, delay: timedelta = timedelta(0)
) -> int:
    """Insert a run of ``job``. Return the id of the run."""
    with database.session(engine) as session, session.begin():
        return enqueue(session, job.name, args=by_name(job, args, kwargs), delay=delay)


def by_name(job: Job, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return positional and keyword arguments as keyword arguments. Raises BadArguments."""
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(job.function).parameters)[1:]
    if len(args) > len(names):
        raise BadArguments(f"job {job.name!r} takes at most {len(names)} arguments, and {len(args)} were given")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def work_function(job: Job, engine: Engine, executor: Executor) -> Callable[..., None]:
    """Return the function that a worker calls for a message of ``job``.

    If the message names a run, the function executes this run. A message of the fast lane names no run: the function
    executes the message itself, or inserts a run if this process declares the job for the ledger. During a deploy, one
    release may declare the job for the ledger and the other for the fast lane. Then workers of each release get
    messages of both kinds.
    """

    def work(*args: Any, **kwargs: Any) -> None:
        message: Any = CurrentMessage.get_current_message()
        run_id = message.options.get(RUN_ID) if message is not None else None
        if isinstance(run_id, int) and isinstance(message, Delivery):
            if executor.execute(job, run_id, carried=message) == RECORDING:
                message.end_later()
        elif isinstance(run_id, int):
            executor.execute(job, run_id)
        elif job.ledger:
            with judging():
                request(engine, job, args, kwargs)
        else:
            work_on_message(job, executor, args, kwargs, message)

    work.__module__, work.__qualname__ = job.function.__module__, job.function.__qualname__
    return work


def work_on_message(
    job: Job, executor: Executor, args: tuple[Any, ...], kwargs: Mapping[str, Any], message: Any
) -> None:
    """Work on a message of the fast lane. If the actor is called directly, there is no message to acknowledge."""
    named = kwargs
    if args:
        with judging():
            named = by_name(job, args, kwargs)
    message_id = message.message_id if message is not None else ""
    dead_letter = message.dead_letter if isinstance(message, Delivery) else None
    executor.execute_fast(job, named, message_id, dead_letter=dead_letter)


def declare(
    broker: Broker,
    registry: Registry,
    engine: Engine,
    executor: Executor,
    carrier: Carrier,
    on_scheduling: Callable[[], None] = nothing,
) -> None:
    """Make an actor of every job in ``registry``.

    ``carrier`` sends the messages of slots that periodiq inserts. ``on_scheduling`` is called whenever periodiq begins
    to ask for a slot.
    """
    firing = Firing(engine, carrier, on_scheduling)
    for job in registry:
        JobActor(job, broker, engine, work_function(job, engine, executor), firing)
