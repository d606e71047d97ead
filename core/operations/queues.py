"""Queues: how many runs wait and run in each, and how many workers take its runs."""

from sqlalchemy import Connection

from core.jobs.registry import Registry
from core.ledger import history, queues, releases
from core.ledger.queues import MOST_COUNTED
from core.operations.access import WHOLE, View
from core.operations.json_shape import Instant, Shape


class Queue(Shape):
    """A queue and its runs now."""

    name: str
    jobs: list[str]
    #: The number of waiting runs that are due.
    due: int
    #: The number of waiting runs that will be due later.
    later: int
    #: The number of runs that were sent to workers, or that wait for another run or for a limit.
    sent: int
    running: int
    #: Whether one of the numbers is only a lower bound. Each number is counted up to 10,000.
    is_more: bool
    oldest_due_at: Instant | None
    workers: int
    threads: int


def listed(connection: Connection, registry: Registry, view: View = WHOLE) -> list[Queue]:
    """Return the queues of all jobs of this process and of live processes, sorted by name."""
    jobs_of: dict[str, set[str]] = {}
    for job in registry:
        jobs_of.setdefault(job.queue, set()).add(job.name)
    for name, found in releases.fleet(connection).queues_of.items():
        for queue in found:
            jobs_of.setdefault(queue, set()).add(name)
    seen = {queue: {job for job in jobs if view.shows(job)} for queue, jobs in jobs_of.items()}
    alive = [process for process in history.alive(connection) if process.kind == "worker"]
    found_here = queues.waiting(connection, sorted(queue for queue, jobs in seen.items() if jobs))
    return [
        Queue(
            name=row.queue,
            jobs=sorted(seen[row.queue]),
            due=row.due,
            later=row.later,
            sent=row.sent,
            running=row.running,
            is_more=max(row.due + row.later, row.sent) >= MOST_COUNTED,
            oldest_due_at=row.oldest_due_at,
            workers=sum(row.queue in process.queues for process in alive),
            threads=sum(process.threads or 0 for process in alive if row.queue in process.queues),
        )
        for row in found_here
    ]
