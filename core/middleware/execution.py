"""Defines ``Execution``, one attempt from its claim to its recorded end, and the layers of middleware around it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from core.errors import BadArguments
from core.jobs.job import Job
from core.jobs.middleware import Attempt
from core.jobs.run import Run, Work
from core.ledger.key_checks import Standing
from core.ledger.leases import Lease
from core.observability import logs
from core.observability.log_tail import LogTail

#: The state of a run whose success has not been recorded yet.
RECORDING = "recording"
#: The state of a run that another process owns now.
LOST = "lost"
#: The state of a run whose attempt does not count, since PostgreSQL had no connection for it.
RELEASED = "released"
#: The outcome of an attempt that postponed its run.
POSTPONED = "later"


class Carried(Protocol):
    """The message of a run, as the broker has delivered it to this process."""

    @property
    def lease(self) -> Lease | None:
        """The lease on the run, if the run was claimed before a thread started it."""

    def worked(self, seconds: float) -> None:
        """Remember how long the job itself took."""

    def end(self) -> None:
        """Acknowledge the message. For an outcome ``recording``, this is called when the success has been recorded."""


class Interruptible(Work, Protocol):
    """The transaction of an attempt, which another thread may interrupt."""

    def cancel(self) -> None:
        """Cancel the running statement."""

    def disconnect(self) -> None:
        """Close the attempt's connection from another thread, so that PostgreSQL rolls back. Does not wait."""

    def abandon_connection(self) -> None:
        """Mark the connection for closing instead of reuse, since a cancellation may still arrive on it."""


@dataclass(slots=True, eq=False)
class Execution:
    """One attempt of a run or of a message of the fast lane. Such a message has no run and no lease."""

    #: Functions that are called with the recorded status, in the order of the layers, the outermost first.
    endings: "Sequence[Ending]"
    job: Job
    run_id: int = 0
    #: The value of ``Run.now``; None for the database's clock.
    now: datetime | None = None
    carried: Carried | None = None
    #: For a message of the fast lane: its arguments, its id, and the function that dead-letters the message.
    args: Mapping[str, Any] = field(default_factory=dict)
    message_id: str = ""
    dead_letter: Callable[[], None] | None = None
    #: The time when the attempt began, by the monotonic clock.
    began: float = field(default_factory=time.perf_counter)
    #: The duration of the attempt, if it is known before the attempt's end is recorded.
    seconds: float | None = None
    lease: Lease | None = None
    #: The arguments for the job's function, or the error if they do not fit.
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    misfit: BadArguments | None = None
    #: The schedule of the run's slot, if the schedule was made at run time.
    standing: Standing | None = None
    #: Whether the success will be recorded later, in a batch.
    is_recorded_later: bool = False
    #: Whether another run was waiting for the end of this run when the success was recorded.
    is_awaited: bool = False
    work: Interruptible | None = None
    run: Run | None = None
    #: The object that plugins' middleware sees; None if there is no such middleware.
    attempt: Attempt | None = None
    #: The plugin's middleware that is being entered or exited now, for the message of a time limit.
    inside: str = ""
    #: The last lines that the attempt has logged.
    tail: LogTail = field(default_factory=LogTail)

    @property
    def elapsed(self) -> float:
        """The time that the attempt took, or has taken until now, in seconds."""
        return self.seconds if self.seconds is not None else time.perf_counter() - self.began

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of every line that is logged during the attempt."""
        lease = self.lease
        if lease is None:
            return {"job": self.job.name, "message": self.message_id}
        slot = lease.slot.isoformat() if lease.slot else None
        return {"job": lease.job, "run": lease.run_id, "slot": slot, "attempt": lease.attempt}

    def open(self, work: Interruptible) -> None:
        """Set the attempt's transaction, and make the ``Run`` that the job's function gets."""
        self.work, job, lease = work, self.job, self.lease
        if lease is not None:
            now = self.now or lease.claimed_at
            self.run = Run(lease.run_id, job.name, lease.key, lease.slot, lease.attempt, now, lease.args, work)
        else:
            assert self.now is not None, "the fast lane has no claim to take the time from"
            self.run = Run(0, job.name, "", None, 1, self.now, self.args, work)

    def failed(self, error: BaseException) -> None:
        """Set the error of the attempt, which plugins' middleware sees."""
        if self.attempt is not None:
            self.attempt.exception = error

    def was_postponed(self) -> None:
        """Clear the error that plugins' middleware sees, since Later is not an error."""
        if self.attempt is not None:
            self.attempt.exception = None

    def make_dead_letter(self) -> None:
        """Dead-letter the message, so that it is not delivered again."""
        if self.dead_letter is not None:
            self.dead_letter()

    def end(self, status: str) -> None:
        """Tell every layer how the attempt has ended."""
        with logs.about(self.fields):
            for ended in self.endings:
                ended(self, status)


class Layer:
    """One layer of the middleware around a run."""

    def around(self, execution: Execution, proceed: "Proceed") -> Any:
        """Do the layer's work before and after ``proceed``, which calls the inner layers. Return the outcome."""
        return proceed(execution)

    def ended(self, execution: Execution, status: str) -> None:
        """Handle the recorded end of the attempt, perhaps in another thread. Must not raise."""


Proceed = Callable[[Execution], Any]
Ending = Callable[[Execution, str], None]


def surrounded(layers: Sequence[Layer], body: Proceed) -> Proceed:
    """Return a function that calls ``body`` within ``layers``. The first layer is the outermost."""
    for layer in reversed(layers):
        body = partial(layer.around, proceed=body)
    return body


def endings(layers: Sequence[Layer]) -> list[Ending]:
    """Return the methods ``ended`` of the layers that define one, in the order of the layers."""
    return [layer.ended for layer in layers if type(layer).ended is not Layer.ended]
