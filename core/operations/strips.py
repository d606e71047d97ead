"""The strips of schedules: for each schedule, what became of its slots in 24 hours, 7 days or 90 days, and why.

A strip has a cell for each slot or for each bin of slots. One strip has the schedule that a job declares, or the
schedules that all keys of a job have, or the schedule of one key. The number of queries does not depend on the number
of schedules.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Row

from core.errors import ScheduleError
from core.jobs.grid import grid, is_readable
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.jobs.schedules import EPOCH, SECOND, Schedule
from core.ledger import history, key_history, key_totals, overdue, pauses, strips
from core.ledger.overdue import Standing
from core.ledger.strips import Lane, Recorded
from core.operations import scopes, strip_windows
from core.operations.access import WHOLE, View
from core.operations.json_shape import Instant, Shape
from core.operations.pauses import Pause
from core.operations.slot_cells import Event, Stretch, stretches
from core.operations.strip_windows import SpanName, Window

UTC_ZONE = ZoneInfo("UTC")
NOTHING = Recorded([], [])
#: The standings of schedules. Those with trouble come first.
STANDINGS = ("failing", "late", "paused", "in time", "no slot yet")
#: The outcome of the slots in a gap, by the gap's reason.
OF_GAPS = {"outage": "missed", "absent": "missed", "paused": "skipped", "backoff": "skipped"}


class Cells(Shape):
    """Neighbouring cells of a strip that show the same outcome. A cell shows the worst outcome of its slots."""

    outcome: str
    #: The bounds of the cells.
    after: Instant
    before: Instant
    #: The number of slots with this outcome, and of all slots; None if they are not counted.
    count: int | None
    slots: int | None
    reason: str | None
    #: The first and the last slot with this outcome, and the run of the first; None for successes.
    first: Instant | None
    last: Instant | None
    run: int | None


class Mark(Shape):
    """A release that was first seen in the span."""

    release: str
    at: Instant


class Strip(Shape):
    """A schedule and what became of its slots."""

    job: str
    #: Empty for a schedule that the job declares; None for the schedules of all keys of the job.
    key: str | None
    plugin: str
    queue: str
    #: The schedule as text; for all keys of a job, their number.
    schedule: str
    zone: str
    #: ``failing``, ``late``, ``paused``, ``in time`` or ``no slot yet``.
    standing: str
    #: The last slot that has succeeded, and the number of slots since then that should have succeeded by now.
    succeeded_slot: Instant | None
    overdue: int
    #: The number of keys that are paused themselves.
    paused_keys: int
    #: The pauses that cover the schedule now.
    pauses: list[Pause]
    next_slots: list[Instant]
    #: The slots that came due in the span outside pauses, and those of them that were in time; None if not counted.
    due: int | None
    in_time: int | None
    cells: list[Cells]


class Strips(Shape):
    """The strips of a span."""

    span: str
    after: Instant
    before: Instant
    now: Instant
    #: None of them if the person may see only some jobs, since a release concerns all jobs.
    releases: list[Mark]
    items: list[Strip]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A strip with its cells as numbers: of an exact lane the seconds of slots, otherwise the numbers of bins."""

    strip: Strip
    is_exact: bool
    stretches: tuple[Stretch, ...]
    #: The pauses that covered the schedule at some time of the span.
    held: tuple[pauses.Pause, ...] = ()


@dataclass(frozen=True, slots=True)
class Board:
    """All strips of a span."""

    window: Window
    releases: list[Mark]
    drawn: list[Drawn]

    def shape(self) -> Strips:
        """Return the strips as JSON."""
        at = self.window
        items = [each.strip for each in self.drawn]
        return Strips(span=at.span, after=at.after, before=at.before, now=at.now, releases=self.releases, items=items)


def board(
    connection: Connection,
    registry: Registry,
    span: SpanName,
    *,
    view: View = WHOLE,
    zone: ZoneInfo = UTC_ZONE,
    job: str | None = None,
) -> Board:
    """Return the strips of the schedules that jobs declare, and of the keys of each job, those with trouble first.

    With ``job``, only its strips are returned.
    """
    reader = Reader(connection, registry, strip_windows.window(span, history.now(connection), zone), view)
    jobs = [each for each in registry if each.ledger and view.shows(each.name) and job in {None, each.name}]
    return reader.board([*reader.declared(jobs), *reader.keyed(jobs)])


def of_key(
    connection: Connection,
    registry: Registry,
    span: SpanName,
    job: str,
    key: str,
    *,
    view: View = WHOLE,
    zone: ZoneInfo = UTC_ZONE,
) -> Board:
    """Return the strip of one key's schedule. Raises UnknownJob, or ScheduleError if the key has no schedule."""
    reader = Reader(connection, registry, strip_windows.window(span, history.now(connection), zone), view)
    return reader.board([reader.of_key(registry.job(job), key)])


@dataclass(frozen=True, slots=True)
class Wanted:
    """A schedule whose strip is made."""

    job: Job
    lane: Lane
    #: The slots of the schedule; None for the schedules of all keys.
    schedule: Schedule | None
    text: str
    #: The schedule has slots since this time, if it is the schedule of a key.
    since: datetime | None = None
    paused_keys: int = 0
    is_paused: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The facts in the ledger about schedules: for single schedules by their place, for declared ones by their job."""

    recorded: Mapping[int, Recorded]
    events: Mapping[int, Sequence[Event]]
    standings: Mapping[str, Standing]
    since: Mapping[str, datetime]
    held: Sequence[pauses.Pause]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the strips of a span."""

    connection: Connection
    registry: Registry
    window: Window
    view: View = WHOLE

    def declared(self, jobs: Iterable[Job]) -> Iterator[Wanted]:
        """Yield the schedules that jobs declare."""
        for job in jobs:
            if job.schedule is not None:
                lane = Lane(job.name, "", strip_windows.is_exact(job.schedule, self.window))
                yield Wanted(job, lane, job.schedule, str(job.schedule))

    def keyed(self, jobs: Iterable[Job]) -> Iterator[Wanted]:
        """Yield the schedules of all keys of each job that has some."""
        known = {job.name: job for job in jobs if job.keyed is not None}
        for name, row in sorted(key_totals.schedules(self.connection, known).items() if known else ()):
            said = "1 key" if row.schedules == 1 else f"{row.schedules:,} keys"
            yield Wanted(known[name], Lane(name, None), None, said, paused_keys=row.paused)

    def of_key(self, job: Job, key: str) -> Wanted:
        """Return the schedule of one key."""
        row = key_history.row(self.connection, job.name, key)
        if row is None:
            raise ScheduleError(f"job {job.name!r} has no schedule for the key {key!r}; see `rota schedules`")
        slots = grid(row.spec, row.phase, row.stretched) if is_readable(row.spec) else None
        lane = Lane(job.name, key, slots is not None and strip_windows.is_exact(slots, self.window))
        since = row.since or self.window.before
        return Wanted(job, lane, slots, row.spec, since, int(bool(row.is_paused)), bool(row.is_paused))

    def board(self, found: Iterable[Wanted]) -> Board:
        """Return the strips of schedules, those with trouble first."""
        wanted, at = list(found), self.window
        facts = self.facts(wanted)
        drawn = [self.drawn(each, place, facts) for place, each in enumerate(wanted)]
        drawn.sort(key=lambda each: (STANDINGS.index(each.strip.standing), each.strip.job))
        return Board(at, self.marks() if self.view.jobs is None else [], drawn)

    def marks(self) -> list[Mark]:
        """Return the releases that were first seen in the span."""
        rows = strips.releases(self.connection, self.window.after, self.window.before)
        return [Mark(release=row.fingerprint, at=row.first_seen_at) for row in rows]

    def facts(self, wanted: Sequence[Wanted]) -> Found:
        """Return what the ledger has about schedules."""
        at, lanes = self.window, [each.lane for each in wanted]
        declared = {each.job.name: each.job for each in wanted if each.lane.key == ""}
        specs = {name: str(job.schedule) for name, job in declared.items()}
        return Found(
            strips.recorded(self.connection, lanes, at.edges, at.now),
            self.events(lanes),
            {row.job: row for row in overdue.look(self.connection, declared.values())},
            strips.declared_since(self.connection, specs, at.after),
            pauses.not_over_at(self.connection, at.after),
        )

    def events(self, lanes: Sequence[Lane]) -> Mapping[int, Sequence[Event]]:
        """Return the slots of each lane that did not simply succeed in time, and its gaps."""
        found: dict[int, list[Event]] = defaultdict(list)
        for row in strips.events(self.connection, lanes, self.window.edges):
            found[row.place].append(Event(row.cell, row.outcome, row.reason, row.slots, row.first, row.last, row.run))
        for row in strips.gaps(self.connection, lanes, self.window.after, self.window.before):
            found[row.place] += of_gap(row, self.window, is_exact=lanes[row.place].is_exact)
        return found

    def drawn(self, wanted: Wanted, place: int, facts: Found) -> Drawn:
        """Return the strip of one schedule."""
        name, at = wanted.job.name, self.window
        recorded, events = facts.recorded.get(place, NOTHING), facts.events.get(place, ())
        standing = facts.standings.get(name) if wanted.lane.key == "" else None
        around = pauses.of_scopes(facts.held, scopes.of_job(self.registry, name))
        found = self.stretches(wanted, recorded, events, facts.since.get(name), standing)
        active = [pause for pause in around if pause.covers(at.now)]
        due, in_time = counted(recorded, events)
        strip = Strip(
            job=name,
            key=wanted.lane.key,
            plugin=self.registry.owners[name].name,
            queue=wanted.job.queue,
            schedule=wanted.text,
            zone=(wanted.schedule.timezone if wanted.schedule else None) or "UTC",
            standing=standing_of(found, standing, is_paused=bool(active) or wanted.is_paused),
            succeeded_slot=standing.succeeded_slot if standing else None,
            overdue=standing.overdue if standing else 0,
            paused_keys=wanted.paused_keys,
            pauses=[Pause.model_validate(pause) for pause in active],
            next_slots=strip_windows.coming(wanted.schedule, at.now) if wanted.schedule else [],
            due=due,
            in_time=in_time,
            cells=[cells(each, at, is_exact=wanted.lane.is_exact) for each in found],
        )
        return Drawn(strip, wanted.lane.is_exact, tuple(found), tuple(around))

    def stretches(
        self,
        wanted: Wanted,
        recorded: Recorded,
        events: Sequence[Event],
        seen_since: datetime | None,
        standing: Standing | None,
    ) -> list[Stretch]:
        """Return the stretches of a strip."""
        at, schedule = self.window, wanted.schedule
        if schedule is None:
            return stretches(recorded.cells, recorded.slots, events, (), ())
        since = wanted.since or seen_since or (at.after - SECOND if standing else at.before)
        known = {*recorded.cells, *(event.cell for event in events)}
        return stretches(
            recorded.cells,
            recorded.slots,
            events,
            strip_windows.unrecorded(schedule, at, known, since),
            strip_windows.to_come(schedule, at, known),
        )


def of_gap(row: Row[Any], at: Window, *, is_exact: bool) -> Iterator[Event]:
    """Yield the cells of a gap. The first of them has the number of its slots."""
    began, ended = max(row.began_at, at.after), min(row.ended_at, at.before - SECOND)
    outcome = OF_GAPS.get(row.reason, "missed")
    slots = int(row.slots)
    if is_exact:
        yield Event(strip_windows.second(began) + 1, outcome, row.reason, slots, began, ended, None)
        return
    for number, (begins, ends) in enumerate(zip(at.edges, at.edges[1:], strict=False)):
        if began < ends - SECOND and begins <= ended:
            yield Event(number, outcome, row.reason, slots, began, ended, None)
            slots = 0


def counted(recorded: Recorded, events: Iterable[Event]) -> tuple[int | None, int | None]:
    """Return how many slots came due outside pauses, and how many of them were in time; None if not counted."""
    if recorded.slots is None:
        return None, None
    found = list(events)
    not_due = sum(event.slots for event in found if event.reason == "paused" or event.outcome in {"queued", "running"})
    wrong = sum(event.slots for event in found if event.outcome in {"dead", "missed", "late", "orphaned"})
    due = max(sum(recorded.slots) - not_due, 0)
    return due, max(due - wrong, 0)


def standing_of(found: Sequence[Stretch], standing: Standing | None, *, is_paused: bool) -> str:
    """Return the standing of a schedule, by its slots since the last success. ``standing`` is None for keys."""
    if standing and standing.dead + standing.orphaned and standing.overdue:
        return "failing"
    if standing and standing.overdue:
        return "late"
    if is_paused:
        return "paused"
    return "in time" if any(each.outcome != "to come" for each in found) else "no slot yet"


def cells(stretch: Stretch, at: Window, *, is_exact: bool) -> Cells:
    """Return neighbouring cells as JSON."""
    first, last = stretch.cells[0], stretch.cells[-1]
    if is_exact:
        after, before = EPOCH + first * SECOND, EPOCH + last * SECOND + SECOND
    else:
        after, before = at.edges[first], at.edges[last + 1]
    return Cells(
        outcome=stretch.outcome,
        after=after,
        before=before,
        count=stretch.count,
        slots=stretch.slots,
        reason=stretch.reason,
        first=stretch.first,
        last=stretch.last,
        run=stretch.run,
    )
