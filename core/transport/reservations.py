"""The setting ``ROTA_RESERVED_THREADS`` reserves threads of each worker process for queues.

Messages of other queues may not take the reserved threads of a queue. A *minor* message is a message whose job has a
lower priority than the most urgent jobs of the queue. A minor message may not take the last reserved thread. No
particular thread is reserved: the process only counts how many messages of each queue occupy a thread.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from core.jobs.job import Job
from core.transport.messages import PRIORITY


@dataclass(frozen=True, slots=True)
class Reservation:
    """The reserved threads of one queue in each worker process, and the jobs that may take all of them."""

    threads: int
    #: The highest priority of the queue's jobs.
    priority: int = 0
    #: The jobs with that priority.
    urgent_jobs: frozenset[str] = frozenset()

    def is_urgent(self, job: str, priority: int) -> bool:
        """Return whether a message of ``job`` with this priority may take the last reserved thread."""
        return job in self.urgent_jobs or priority >= self.priority


#: The default: no queue has reserved threads.
NONE_RESERVED: Mapping[str, Reservation] = MappingProxyType({})


def reservations(threads: Mapping[str, int], jobs: Iterable[Job]) -> dict[str, Reservation]:
    """Return the reservation of each queue that one of the ``jobs`` uses.

    ``threads`` has the number of threads for each queue.
    """
    by_queue: dict[str, list[Job]] = {}
    for job in jobs:
        if job.queue in threads:
            by_queue.setdefault(job.queue, []).append(job)
    return {queue: reservation(threads[queue], found) for queue, found in by_queue.items()}


def reservation(threads: int, jobs: Collection[Job]) -> Reservation:
    """Return the reservation of this number of threads for a queue with these jobs."""
    highest = max(job.priority for job in jobs)
    return Reservation(threads, highest, frozenset(job.name for job in jobs if job.priority == highest))


def too_few(threads: int, reserved: Iterable[Reservation]) -> str:
    """Return the problem if a process has too few ``threads`` for the reservations, or ``""`` if it has enough."""
    least = sum(each.threads for each in reserved) + 1
    if threads >= least:
        return ""
    return (
        f"ROTA_RESERVED_THREADS reserves {least - 1} threads of each worker process, which has {threads} in all; "
        f"give it at least {least} threads, or reserve fewer"
    )


@dataclass(slots=True)
class Occupied:
    """How many urgent and minor messages of a queue occupy a thread, and how many threads the queue has reserved."""

    reserved: int = 0
    urgent: int = 0
    minor: int = 0

    def add(self, count: int, *, is_urgent: bool) -> None:
        """Count ``count`` more messages, or fewer if it is negative."""
        if is_urgent:
            self.urgent += count
        else:
            self.minor += count

    def reserved_left(self, *, is_urgent: bool) -> int:
        """Return how many more reserved threads urgent messages, or minor messages, may take."""
        for_minor = max(self.reserved - 1, 0)
        minor = min(self.minor, for_minor)
        left = max(self.reserved - minor - self.urgent, 0)
        return left if is_urgent else min(left, for_minor - minor)

    @property
    def beyond(self) -> int:
        """How many of the messages occupy threads that are not reserved."""
        minor = max(self.minor - max(self.reserved - 1, 0), 0)
        return minor + max(self.urgent - (self.reserved - (self.minor - minor)), 0)


@dataclass(slots=True)
class Occupancy:
    """How many threads of one process are occupied, by queue."""

    #: The number of threads that are not reserved.
    shared: int
    queues: dict[str, Occupied] = field(default_factory=dict)

    @classmethod
    def of(cls, threads: int, reserved: Mapping[str, Reservation]) -> "Occupancy":
        """Return the occupancy of a process in which all ``threads`` are free."""
        queues = {queue: Occupied(each.threads) for queue, each in reserved.items()}
        return cls(threads - sum(each.reserved for each in queues.values()), queues)

    def add(self, queue: str, count: int, *, is_urgent: bool) -> None:
        """Count messages of ``queue`` that begin to occupy a thread.

        With a negative ``count``, the messages no longer occupy a thread.
        """
        self.queues.setdefault(queue, Occupied()).add(count, is_urgent=is_urgent)

    def with_more(self, waiting: Mapping[str, int]) -> "Occupancy":
        """Return the occupancy after more urgent messages have started, as many of each queue as ``waiting`` says."""
        more = Occupancy(self.shared, {queue: replace(each) for queue, each in self.queues.items()})
        for queue, count in waiting.items():
            more.add(queue, count, is_urgent=True)
        return more

    @property
    def shared_left(self) -> int:
        """The number of threads that are left for messages of any queue."""
        return max(self.shared - sum(each.beyond for each in self.queues.values()), 0)

    def left(self, queue: str, *, is_urgent: bool) -> int:
        """Return how many more messages of ``queue`` may start."""
        occupied = self.queues.get(queue)
        return self.shared_left + (occupied.reserved_left(is_urgent=is_urgent) if occupied else 0)


def urgency(message: Any) -> int:
    """Return the priority of a message, or 0 if it has none."""
    priority = message.options.get(PRIORITY, 0)
    return priority if isinstance(priority, int) else 0
