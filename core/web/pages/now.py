"""The first page: what is wrong, or that nothing is, and what runs, waits and comes next."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from core.jobs.registry import Registry
from core.ledger import history
from core.ledger import pauses as rows
from core.operations import failures, queues, standings, workers
from core.operations.access import View
from core.operations.service_health import Health
from core.operations.standings import Overdue
from core.web import health
from core.web.api import pauses
from core.web.api.ledger import Jobs, Reading
from core.web.api.parameters import Seen
from core.web.pages import page as pages
from core.web.pages.page import Shown

router = pages.router()

FAILURES_OF = timedelta(days=7)
#: The most failures, running runs and schedules that are shown.
MOST_SHOWN = 8
PARTS = {"database": "PostgreSQL", "redis": "Redis", "worker": "Workers", "scheduler": "Scheduler"}


@dataclass(frozen=True, slots=True)
class Lamp:
    """The health of one part of the service: its state in a word, and the reason if it is wrong."""

    name: str
    state: str
    reason: str
    is_wrong: bool


@dataclass(frozen=True, slots=True)
class Coming:
    """The jobs whose next slot is at an instant."""

    at: datetime
    jobs: list[str]


async def looked(request: Request) -> Health:
    """Return the health of the service, as far as the servers answer in time."""
    return await health.look(request)


@router.get("/")
def now(
    page: Shown, found: Annotated[Health, Depends(looked)], connection: Reading, registry: Jobs, seen: Seen
) -> Response:
    """Show what is wrong, or that nothing is."""
    active, at = rows.active(connection), history.now(connection)
    late = [each for each in standings.late(connection, registry, active) if seen.shows(each.job)]
    return page.shown(
        "now.html",
        now=at,
        lamps=[*lamps(found), slots_lamp(late)],
        late=late,
        failures=failures.grouped(connection, registry, FAILURES_OF, seen),
        processes=workers.listed(connection, registry, seen),
        queues=queues.listed(connection, registry, seen),
        pauses=pauses.listed(connection, registry, seen),
        coming=coming(registry, at, seen)[:MOST_SHOWN],
        most=MOST_SHOWN,
    )


def lamps(found: Health) -> Iterator[Lamp]:
    """Yield a lamp for each server and each kind of process."""
    reasons = found.reasons or {}
    for part, name in PARTS.items():
        state = getattr(found, part)
        if state is not None:
            yield Lamp(name, state, reasons.get(part, ""), part in reasons)


def slots_lamp(late: list[Overdue]) -> Lamp:
    """Return the lamp for the slots of schedules."""
    names = ", ".join(each.job for each in late[:3])
    others = f" and {len(late) - 3} more" if len(late) > 3 else ""
    return Lamp("Slots", "overdue" if late else "in time", f"{names}{others}", bool(late))


def coming(registry: Registry, at: datetime, seen: View) -> list[Coming]:
    """Return the next slot of each schedule, grouped by instant, the soonest first."""
    found: dict[datetime, list[str]] = {}
    for job in registry.scheduled():
        if job.schedule is not None and seen.shows(job.name):
            found.setdefault(job.schedule.next_after(at), []).append(job.name)
    return [Coming(instant, jobs) for instant, jobs in sorted(found.items())]
