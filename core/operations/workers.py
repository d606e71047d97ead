"""The live processes, the runs that each works on, and the processes that have left."""

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row

from core.jobs.registry import Registry
from core.ledger import history
from core.operations.access import WHOLE, View
from core.operations.json_shape import Instant, Shape
from core.operations.redaction import Redactor, redactor

#: A process that has left is listed for this long.
LEFT_WITHIN = timedelta(hours=24)
#: At most this many processes that have left are listed.
MOST_LEFT = 100


class AtWork(Shape):
    """A run that a process works on now."""

    run: int
    job: str
    key: str
    attempt: int
    started_at: Instant
    progress: Any


class Live(Shape):
    """A live process."""

    id: int
    #: ``worker``, ``scheduler``, ``isolated``, or ``stuck`` for a worker that makes no progress.
    kind: str
    name: str
    queues: list[str]
    #: The number of runs that the process works on at the same time, if it is a worker.
    threads: int | None
    #: The number of these threads that are reserved for each queue, by ``ROTA_RESERVED_THREADS``.
    reserved: dict[str, int]
    release: str | None
    started_at: Instant
    expires_at: Instant
    runs: list[AtWork]


class Left(Shape):
    """A process that has left."""

    id: int
    kind: str
    name: str
    queues: list[str]
    started_at: Instant
    left_at: Instant
    #: Why the process left: ``stopped``, ``lost PostgreSQL``, ``died`` or ``no heartbeat``.
    reason: str


class Workers(Shape):
    """The live processes, and the processes that left last."""

    live: list[Live]
    left: list[Left]


def listed(connection: Connection, registry: Registry, view: View = WHOLE) -> Workers:
    """Return the live processes in the order of their start, and the processes that left in the last 24 hours, the
    newest first.
    """
    alive, hiding = history.alive(connection), redactor(connection, registry, view)
    at_work = [
        (row.process_id, shown(hiding, row))
        for row in history.at_work(connection, [process.id for process in alive])
        if view.shows(row.job)
    ]
    live = [
        Live.model_validate(
            {name: getattr(process, name) for name in Live.model_fields if name != "runs"}
            | {"runs": [work for owner, work in at_work if owner == process.id]}
        )
        for process in alive
    ]
    left = [Left.model_validate(row) for row in history.departures(connection, LEFT_WITHIN, MOST_LEFT)]
    return Workers(live=live, left=left)


def shown(hiding: Redactor, row: Row[Any]) -> AtWork:
    """Return a run of a live process, without secrets."""
    return AtWork.model_validate({**row._mapping, "progress": hiding.value(row.job, row.args, row.progress)})
