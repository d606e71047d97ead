"""Schedules: a strip for each, with what became of its slots and why; and one schedule with its slots."""

import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from fastapi import Query
from sqlalchemy import Connection
from starlette.responses import Response

from core.errors import UnknownJob
from core.jobs.registry import Registry
from core.ledger import history
from core.operations import access, requests, slots, strips, times
from core.operations.access import View
from core.operations.slot_cells import Stretch
from core.operations.strip_windows import DAY, HOUR, SpanName
from core.operations.strips import Board, Drawn
from core.web.api import pauses as api
from core.web.api.jobs import JobName
from core.web.api.ledger import Changing, Jobs, Ledger, Reading
from core.web.api.parameters import Key, Name, Seen
from core.web.api.pauses import NewPause
from core.web.pages import forms, instants, strip_drawing
from core.web.pages import page as pages
from core.web.pages.forms import Form
from core.web.pages.jobs import Wanted
from core.web.pages.page import Shown
from core.web.pages.rendering import address
from core.web.pages.strip_drawing import MOST_WITH_TIPS, Scale

router = pages.router()

SPANS: tuple[SpanName, ...] = ("24h", "7d", "90d")
#: The standings that need a look.
TROUBLE = ("failing", "late", "paused")
Standing = Literal["failing", "late", "paused", "in time", "no slot yet"]
Deed = Literal["run", "pause", "resume"]
#: About the most slots that one page lists.
SLOTS_SHOWN = 240
#: How far the slots of one schedule are listed beyond now.
AHEAD = HOUR


class Picture:
    """A board as a page shows it: what all strips share, and each strip."""

    def __init__(self, board: Board, zone: ZoneInfo, prefix: str) -> None:
        self.board, self.zone = board, zone
        self._scale = Scale(board.window, zone)
        self._prefix = prefix
        self._has_tips = len(board.drawn) <= MOST_WITH_TIPS

    def definitions(self) -> str:
        """Return what all strips share."""
        return strip_drawing.definitions(self.board, self._scale)

    def axis(self) -> str:
        """Return the labels above the strips."""
        return strip_drawing.axis(self.board, self._scale)

    def strip(self, drawn: Drawn) -> str:
        """Return the drawing of one strip."""
        return strip_drawing.strip(drawn, self._scale, partial(why, self._prefix), has_tips=self._has_tips)

    def whole(self, drawn: Drawn) -> str:
        """Return the drawing of a strip that stands alone."""
        marks = strip_drawing.own_marks(self.board, self._scale)
        return strip_drawing.strip(drawn, self._scale, partial(why, self._prefix), marks=marks, has_tips=True)


def why(prefix: str, drawn: Drawn, stretch: Stretch) -> str:
    """Return the address that explains the first slot of a stretch; of all keys of a job, its run."""
    strip = drawn.strip
    if stretch.first is not None and strip.key is not None:
        return address(prefix, "/why", job=strip.job, key=strip.key, at=instants.utc(stretch.first))
    return address(prefix, f"/runs/{stretch.run}" if stretch.run else f"/schedules/{strip.job}")


@router.get("/schedules")
def listed(
    page: Shown,
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    span: SpanName = "24h",
    plugin: Annotated[Name | None, Query()] = None,
    standing: Annotated[Standing | None, Query()] = None,
) -> Response:
    """List schedules with their strips, those with trouble first."""
    zone = zone_of_schedules(registry)
    board = strips.board(connection, registry, span, view=seen, zone=zone)
    shown = [
        each for each in board.drawn if plugin in {None, each.strip.plugin} and standing in {None, each.strip.standing}
    ]
    return page.shown(
        "schedules.html",
        picture=Picture(board, zone, str(page.request.scope["root_path"])),
        groups=grouped(shown),
        all=board.drawn,
        chosen=page.filter("plugin", "standing"),
        standings=Counter(each.strip.standing for each in board.drawn),
        plugins=Counter(each.strip.plugin for each in board.drawn),
        spans=SPANS,
    )


def zone_of_schedules(registry: Registry) -> ZoneInfo:
    """Return the zone in which most schedules are declared, or UTC."""
    zones = Counter(job.schedule.timezone for job in registry.scheduled() if job.schedule is not None)
    zones.pop("UTC", None)
    return ZoneInfo(str(zones.most_common(1)[0][0]) if zones else "UTC")


def grouped(drawn: Iterable[Drawn]) -> list[tuple[str, list[Drawn]]]:
    """Return the strips that need a look, and the others."""
    found: dict[str, list[Drawn]] = {"Needs a look": [], "As they should be": []}
    for each in drawn:
        found["Needs a look" if each.strip.standing in TROUBLE else "As they should be"].append(each)
    return [(title, strips) for title, strips in found.items() if strips]


@router.get("/schedules/{name}")
def one(
    name: JobName,
    page: Shown,
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    key: Annotated[Key | None, Query()] = None,
    until: Annotated[datetime | None, Query()] = None,
) -> Response:
    """Show a schedule, with its slots of a day and what became of each."""
    job = registry.job(name)
    access.check_jobs(connection, page.caller, [name])
    zone, prefix = page.zone(name), str(page.request.scope["root_path"])
    boards = [board_of(connection, registry, span, name, key, seen, zone) for span in SPANS]
    if not boards[0].drawn:
        raise UnknownJob(f"job {name!r} has no schedule")
    now = history.now(connection)
    before = times.within(until, "until") if until is not None and until.utcoffset() is not None else now + AHEAD
    length, found = listed_at_once(boards[0].drawn[0].strip.next_slots), None
    if job.schedule is not None or key is not None:
        found = slots.listed(connection, registry, name, key or "", before - length, before)
    oldest = history.first_slot(connection, name, key or "")
    return page.shown(
        "schedule.html",
        job=job,
        key=key,
        zone=zone,
        once=secrets.token_hex(16),
        pictures=[Picture(board, zone, prefix) for board in boards],
        strip=boards[0].drawn[0].strip,
        slots=found,
        before=before,
        length=length,
        earlier=(before - length).isoformat() if oldest is not None and oldest < before - length else None,
        later=(before + length).isoformat() if before < now else None,
        is_paused_itself=any(pause.scope == f"job:{name}" for pause in boards[0].drawn[0].strip.pauses),
    )


def listed_at_once(coming: Sequence[datetime]) -> timedelta:
    """Return the span whose slots one page lists: a day, or less if the next slots are close together."""
    step = coming[1] - coming[0] if len(coming) > 1 else DAY
    return min(DAY, max(2 * HOUR, step * SLOTS_SHOWN))


def board_of(
    connection: Connection, registry: Registry, span: SpanName, job: str, key: str | None, view: View, zone: ZoneInfo
) -> Board:
    """Return the strips of one job, or of one of its keys."""
    if key is None:
        return strips.board(connection, registry, span, view=view, zone=zone, job=job)
    return strips.of_key(connection, registry, span, job, key, view=view, zone=zone)


@router.post("/schedules/{name}/run")
def run(name: JobName, page: Shown, engine: Ledger, registry: Jobs, form: Form) -> Response:
    """Request a run of the job now, without arguments."""
    wanted = forms.checked(Wanted, {field: forms.first(form, field) for field in Wanted.model_fields})
    asked = requests.request(engine, registry, name, page.caller, key=wanted.key, once=wanted.once)
    waits = " It waits until the pause ends." if asked.pauses else ""
    return page.back(forms.place(form), f"Run {asked.run_id} of {name} is requested.{waits}")


@router.post("/schedules/{name}/pause")
def pause(name: JobName, page: Shown, connection: Changing, registry: Jobs, form: Form) -> Response:
    """Pause the job."""
    given = {"scope": f"job:{name}", "reason": forms.first(form, "reason"), "minutes": forms.first(form, "minutes")}
    begun = api.begin(forms.checked(NewPause, given), connection, registry, page.caller)
    until = f" until {begun.pause.until:%Y-%m-%d %H:%M} UTC" if begun.pause.until else " until somebody ends it"
    return page.back(forms.place(form), f"{name} is paused{until}.")


@router.post("/schedules/{name}/resume")
def resume(name: JobName, page: Shown, connection: Changing, registry: Jobs, form: Form) -> Response:
    """End the pause of the job."""
    api.end(f"job:{name}", connection, registry, page.caller)
    return page.back(forms.place(form), f"{name} is no longer paused.")
