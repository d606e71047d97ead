"""Counts the schedules made at run time, and the outcomes of their slots."""

from datetime import timedelta

from sqlalchemy import Connection

from core.jobs.registry import Registry
from core.ledger import history, key_listing, key_totals
from core.operations.json_shape import Instant, Shape
from core.operations.runs import refuse_unknown

#: The outcomes of slots that have no runs.
GAPS = ("outage", "paused", "backoff", "absent")


class Totals(Shape):
    """The schedules of a job, and the outcomes of its slots since a time."""

    job: str
    since: Instant
    schedules: int
    paused: int
    backing_off: int
    succeeded: int
    dead: int
    skipped: int
    missed: int
    orphaned: int
    #: The number of slots that have no runs, by reason.
    gaps: dict[str, int]


def totals(connection: Connection, registry: Registry, job: str | None, lasting: timedelta) -> list[Totals]:
    """Return the totals of each job that has schedules made at run time, or only of ``job``.

    Outcomes are counted for slots within ``lasting`` before now. Raises UnknownJob.
    """
    there = key_listing.jobs(connection)
    if job is not None and job not in there:
        refuse_unknown(connection, registry, job)
    since = (history.now(connection) - lasting).replace(second=0, microsecond=0)
    counts = key_totals.schedules(connection, there if job is None else {job})
    slots = key_totals.slots(connection, sorted(counts), since)
    return [
        Totals(
            job=name,
            since=since,
            schedules=counts[name].schedules,
            paused=counts[name].paused,
            backing_off=counts[name].backing_off,
            **{state: found.get(state, 0) for state in ("succeeded", "dead", "skipped", "missed", "orphaned")},
            gaps={reason: found[reason] for reason in GAPS if reason in found},
        )
        for name, found in slots.items()
    ]
