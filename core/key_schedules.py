"""Schedules made at run time: ``schedule``, ``unschedule``, ``sync_schedules`` and the functions that pause and list
them.

Such a schedule belongs to a key of a job that is declared with ``keyed=Keyed(…)``. A change takes effect when the
caller's transaction commits.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Row
from sqlalchemy.orm import Session

from core import settings
from core.enqueue import LONGEST_KEY, check_priority, enqueue, is_key, plain_session
from core.errors import BadArguments, NaiveTime, ScheduleError
from core.jobs import arguments
from core.jobs.grid import grid, is_readable
from core.jobs.job import Job
from core.jobs.keyed import Keyed, KeySchedule, is_interval
from core.jobs.schedules import LONGEST_INTERVAL, SECOND, Cron, Every
from core.ledger import key_schedules as rows
from core.ledger import leases
from core.ledger.key_schedules import Wanted
from core.plugins import loading

First = Literal["spread", "now"]
#: JSON as PostgreSQL writes it.
as_json = json.JSONEncoder(ensure_ascii=False).encode
#: The arguments of a key that is added without arguments.
NO_ARGS: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Synced:
    """The numbers of schedules that ``sync_schedules`` has added, changed, removed, and left unchanged."""

    added: int
    changed: int
    removed: int
    kept: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between the schedules that a job has and the wanted schedules."""

    #: The schedules to add, the schedules to change, and the keys whose schedules to remove.
    added: Sequence[Wanted]
    changed: Sequence[Wanted]
    removed: Sequence[str]
    #: The number of schedules that do not change.
    kept: int

    @property
    def there(self) -> int:
        """The number of schedules that the job has."""
        return len(self.changed) + len(self.removed) + self.kept

    @property
    def wanted(self) -> int:
        """The number of wanted schedules."""
        return len(self.added) + len(self.changed) + self.kept

    @property
    def synced(self) -> Synced:
        """The numbers of changes that a sync would make."""
        return Synced(len(self.added), len(self.changed), len(self.removed), self.kept)


@dataclass(frozen=True, slots=True)
class ScheduledKey:
    """The schedule of a key."""

    job: str
    key: str
    #: The schedule as text, and the seconds that are added to each of its slots. These fields show a change at once.
    #: The dispatcher applies it within a second.
    spec: str
    phase: int
    #: The next slot of the schedule; None while it is paused, or if this process cannot read the schedule, since its
    #: host lacks the time zone.
    next_at: datetime | None
    args: Mapping[str, Any] = field(repr=False)
    priority: int | None
    #: Grows with each change of the schedule.
    version: int
    #: The schedule is in force since this time, and only later slots come due. None until the dispatcher has seen the
    #: schedule.
    since: datetime | None
    #: How many times a back-off has doubled the time between two slots; 0 if the key does not back off.
    stretch: int
    failures: int
    #: The active pause: its start, its end if it has one, the person or job that began it, and the reason.
    paused_at: datetime | None
    paused_until: datetime | None
    paused_by: str | None
    pause_reason: str | None
    created_at: datetime
    changed_at: datetime
    changed_by: str


def schedule(
    session: Session,
    job: str,
    *,
    key: str,
    every: timedelta | None = None,
    cron: Cron | None = None,
    spread: timedelta = timedelta(0),
    first: First = "spread",
    args: Mapping[str, Any] | None = None,
    priority: int | None = None,
) -> bool:
    """Give a key of ``job`` a schedule, or change it, when the caller's transaction commits. Return whether it changed.

    ``every`` is an interval. The slots of different keys are spread evenly over it, and the first slot of a key comes
    within one interval of the commit. If the interval changes, the next slot of the former interval still comes, if it
    is earlier. ``cron=cron(…)`` is a cron expression; the slots of a key come at its times plus a delay of up to
    ``spread``. Without both, the schedule is the default of the job's ``Keyed``.

    With ``first="now"``, a run is also requested in the same transaction, if the schedule is new or its slots change.
    ``args`` and ``priority`` are copied to each slot's run when the slot comes due. Without ``args``, the runs have no
    arguments, even if the key had some before. A call with the schedule that the key already has changes nothing. No
    call ends a pause or a back-off.

    Raises UnknownJob. Raises ScheduleError if the job takes no schedules made at run time, or if there are too many.
    Raises BadArguments if another value is invalid, and RotaError if ``session`` has another type.
    """
    session = plain_session(session)
    wanted = KeySchedule(key, every, cron, spread, args or NO_ARGS, priority)
    return give(session, job, wanted, first=first, by=caller(session))


def give(session: Session, job: str, wanted: KeySchedule, *, first: First, by: str) -> bool:
    """Do the work of ``schedule``, for a person or an application. Without ``args``, a key keeps its arguments."""
    if first not in ("spread", "now"):
        raise BadArguments(f"job {job!r}: first={first!r} must be 'spread' or 'now'")
    found = keyed_job(job)
    if wanted.args is None and (present := rows.listed(session, job, keys=[wanted.key])):
        wanted = replace(wanted, args=present[0].args)
    written = rows.put(session, job, owner(job), [encoded(found, wanted)], by=by)
    if written.added:
        refuse_too_many(session, job, 0)
    if first == "now" and (written.added or written.retimed):
        enqueue(session, job, key=wanted.key, args=wanted.args, priority=wanted.priority)
    return bool(written.added or written.changed)


def unschedule(session: Session, job: str, *, key: str) -> bool:
    """Remove the schedule of a key when the caller's transaction commits. Return False if the key has no schedule.

    Slots of the schedule that no worker has started end as skipped, with the reason ``unscheduled``. Runs that have
    started continue, and requested runs are not affected.

    Raises UnknownJob, or RotaError if ``session`` has another type.
    """
    session = plain_session(session)
    loading.current().job(job)
    return bool(rows.remove(session, job, [key], by=caller(session)))


def sync_schedules(session: Session, job: str, wanted: Iterable[KeySchedule], *, most_removed: float = 0.5) -> Synced:
    """Give ``job`` exactly the ``wanted`` schedules: add, change and remove schedules that differ.

    ``most_removed`` is the largest part of the job's schedules that may be removed. It protects against a query that
    wrongly returns few rows. A second sync of the same job waits until the caller's transaction ends.

    Raises the errors of ``schedule``. Also raises ScheduleError if too many schedules would be removed, and
    BadArguments if a key is wanted twice. In both cases nothing is changed.
    """
    session = plain_session(session)
    return give_all(session, job, wanted, most_removed=most_removed, by=caller(session))


def give_all(
    session: Session, job: str, wanted: Iterable[KeySchedule], *, most_removed: float, by: str
) -> Synced:  # fmt: skip
    """Do the work of ``sync_schedules``, for a person or an application.

    The existing schedules are read before ``wanted`` is read. So a schedule that another transaction adds meanwhile is
    not removed.
    """
    found = keyed_job(job)
    rows.one_sync(session, job)
    differs = difference(session, found, wanted)
    refuse_removal(job, len(differs.removed), differs.there, differs.wanted, most_removed)
    refuse_too_many(session, job, len(differs.added) - len(differs.removed))
    known = {each.key for each in differs.changed}
    written = rows.put(session, job, owner(job), [*differs.added, *differs.changed], by=by, known=known)
    gone = len(rows.remove(session, job, differs.removed, by=by)) if differs.removed else 0
    return Synced(len(written.added), len(written.changed), gone, differs.kept)


def difference(session: Session, job: Job, wanted: Iterable[KeySchedule]) -> Difference:
    """Return the difference between the schedules of ``job`` and the ``wanted`` schedules. Raises BadArguments."""
    there = rows.every_row(session, job.name)
    encoder = Encoder(job, there)
    listed = {each.key: each for each in map(encoder.encoded, wanted)}
    if encoder.count != len(listed):
        raise BadArguments(f"job {job.name!r}: {encoder.count - len(listed)} keys are wanted twice; give each key once")
    plugin = owner(job.name)
    common = [each for key, each in listed.items() if key in there]
    changed = [each for each in common if not rows.is_same(there[each.key], each, plugin)]
    return Difference(
        added=[each for key, each in listed.items() if key not in there],
        changed=changed,
        removed=[key for key in there if key not in listed],
        kept=len(common) - len(changed),
    )


def pause_schedule(
    session: Session, job: str, *, key: str, reason: str | None = None, until: datetime | None = None,
    by: str | None = None,
) -> None:  # fmt: skip
    """Pause the schedule of a key when the caller's transaction commits: no slot comes due ``until`` an aware time.

    Without ``until``, the pause lasts until ``resume_schedule``. ``reason`` and ``by`` are for people. By default,
    ``by`` is the job whose run calls this function, or ``an application``. Slots that are already due and have not
    started are skipped. Requested runs of the key still start.

    Raises ScheduleError if the key has no schedule, NaiveTime or BadArguments for ``until``, and the errors of
    ``unschedule``.
    """
    session = plain_session(session)
    loading.current().job(job)
    if until is not None:
        check_until(session, job, until)
    if not rows.pause(session, job, key, by=by or caller(session), reason=reason, until=until):
        raise ScheduleError(f"job {job!r} has no schedule for the key {key!r}")


def resume_schedule(session: Session, job: str, *, key: str, by: str | None = None) -> bool:
    """End the pause of a key, and its back-off, when the caller's transaction commits.

    Return False if the key is not paused and its last run did not die.

    Raises the errors of ``unschedule``.
    """
    session = plain_session(session)
    loading.current().job(job)
    return rows.resume(session, job, key, by=by or caller(session))


def schedules(session: Session, job: str, *, after: str = "", limit: int = 1000) -> list[ScheduledKey]:
    """Return up to ``limit`` schedules of ``job`` whose keys come after ``after``, in the order of their keys.

    Raises UnknownJob, or RotaError if ``session`` has another type.
    """
    session = plain_session(session)
    loading.current().job(job)
    return [scheduled(row) for row in rows.listed(session, job, after=after, limit=limit)]


def keyed_job(name: str) -> Job:
    """Return the job ``name``. Raises UnknownJob. Raises ScheduleError if the job's keys may have no schedules."""
    found = loading.current().job(name)
    if found.keyed is None:
        raise ScheduleError(f"job {name!r} takes no schedules made at run time; declare it with keyed=Keyed(…)")
    return found


def owner(job: str) -> str:
    """Return the name of the plugin of ``job``."""
    return loading.current().owners[job].name


def caller(session: Session) -> str:
    """Return the name to record for a change, if no name is given: the job whose run has this session, or ``an
    application``.
    """
    lease = leases.of(session)
    return f"run {lease.run_id} of job {lease.job}" if lease is not None else "an application"


def encoded(job: Job, wanted: KeySchedule) -> Wanted:
    """Return ``wanted`` in the form in which it is stored. Raises BadArguments."""
    return Encoder(job).encoded(wanted)


def timing_of(job: Job, wanted: KeySchedule) -> Every | Cron:
    """Return the schedule that a KeySchedule describes. Raises BadArguments."""
    assert job.keyed is not None, "checked by keyed_job"
    said = f"job {job.name!r}, key {wanted.key!r}"
    timing = given(said, job.keyed, wanted)
    if refusal := job.keyed.refusal(timing):
        raise BadArguments(f"{said}: {refusal}")
    spread = wanted.spread
    if not isinstance(spread, timedelta) or spread % SECOND or not timedelta(0) <= spread <= LONGEST_INTERVAL:
        raise BadArguments(f"{said}: spread={spread!r} must be a timedelta of whole seconds, 0 or more")
    if spread and isinstance(timing, Every):
        raise BadArguments(f"{said}: spread={spread} is for cron; the keys of an interval are spread over all of it")
    return timing


def given(said: str, keyed: Keyed, wanted: KeySchedule) -> Every | Cron:
    """Return the schedule that ``every``, ``cron`` or the default describes. Raises BadArguments."""
    if wanted.every is not None and wanted.cron is not None:
        raise BadArguments(f"{said}: every and cron contradict each other; give one")
    if wanted.cron is not None:
        if not isinstance(wanted.cron, Cron):
            raise BadArguments(f"{said}: cron={wanted.cron!r} must be made by cron(…)")
        return wanted.cron
    if wanted.every is not None:
        if not is_interval(wanted.every):
            raise BadArguments(f"{said}: every={wanted.every!r} must be a timedelta of whole seconds, 1 s or more")
        return Every(wanted.every)
    if not isinstance(keyed.default, Every | Cron):
        raise BadArguments(f"{said}: give every or cron, since the job's Keyed has no default")
    return keyed.default


@dataclass(slots=True)
class Encoder:
    """Encodes schedules of one job. A value that many schedules have, or that is stored already, is checked once."""

    job: Job
    there: Mapping[str, Row[Any]] = field(default_factory=dict)
    #: The number of schedules that were encoded.
    count: int = 0
    #: Timings that were already encoded: by ``every``, ``cron`` and ``spread``, the schedule's text, the interval in
    #: seconds, the spread in seconds, and the longest stretch.
    timings: dict[tuple[Any, ...], tuple[str, int | None, int, int]] = field(default_factory=dict)
    #: The arguments of a key that is given none, as JSON. Empty until they have been checked.
    no_args: str = ""

    def encoded(self, wanted: object) -> Wanted:
        """Return ``wanted`` in the form in which it is stored; see the function ``encoded``."""
        self.count += 1
        name = self.job.name
        if not isinstance(wanted, KeySchedule):
            raise BadArguments(f"job {name!r}: {wanted!r} must be a KeySchedule")
        if not wanted.key or not is_key(wanted.key):
            raise BadArguments(f"job {name!r}: key must be a string of 1 to {LONGEST_KEY} characters, none of them NUL")
        check_priority(name, wanted.priority)
        spec, seconds, spread, most_stretch = self._timing(wanted)
        args = self._args(wanted)
        about = self.job.subject.of(json.loads(args)) if self.job.subject is not None else None
        return Wanted(wanted.key, spec, seconds, spread, args, wanted.priority, about, most_stretch)

    def _timing(self, wanted: KeySchedule) -> tuple[str, int | None, int, int]:
        known = (type(wanted.every), wanted.every, wanted.cron, wanted.spread)
        if known not in self.timings:
            timing = timing_of(self.job, wanted)
            seconds = int(timing.interval.total_seconds()) if isinstance(timing, Every) else None
            most = self.job.keyed.longest_stretch(timing) if self.job.keyed is not None else 0
            self.timings[known] = (str(timing), seconds, int(wanted.spread.total_seconds()), most)
        return self.timings[known]

    def _args(self, wanted: KeySchedule) -> str:
        """Return the arguments as JSON. Arguments that are already stored are not checked again."""
        given = wanted.args or NO_ARGS
        if not given:
            self.no_args = self.no_args or arguments.encode(self.job, NO_ARGS)
            return self.no_args
        row = self.there.get(wanted.key)
        if row is not None and isinstance(given, dict):
            with suppress(TypeError, ValueError):
                if row.args == as_json(given):
                    return str(row.args)
        return arguments.encode(self.job, given)


def refuse_removal(job: str, removed: int, there: int, wanted: int, most_removed: float) -> None:
    """Raise ScheduleError if more than the part ``most_removed`` of the schedules would be removed."""
    if removed > there * most_removed:
        raise ScheduleError(
            f"job {job!r}: this sync wants {wanted} schedules and would remove {removed} of {there}, more than "
            f"most_removed={most_removed}; nothing was changed. If this is intended, pass most_removed=1.0"
        )


def refuse_too_many(session: Session, job: str, more: int) -> None:
    """Raise ScheduleError if there would be more schedules than ``ROTA_MOST_SCHEDULES``."""
    most = settings.most_schedules()
    if more >= 0 and not rows.has_room(session, more, most):
        raise ScheduleError(f"job {job!r}: there would be more than {most} schedules ({settings.MOST_SCHEDULES})")


def check_until(session: Session, job: str, until: object) -> None:
    """Raise BadArguments or NaiveTime unless ``until`` is an aware time in the future."""
    if not isinstance(until, datetime):
        raise BadArguments(f"job {job!r}: until={until!r} must be a datetime with a time zone")
    if until.utcoffset() is None:
        raise NaiveTime(f"job {job!r}: until={until!r} has no time zone; give an aware datetime")
    if rows.is_past(session, until):
        raise BadArguments(f"job {job!r}: until={until.isoformat()} is past")


def scheduled(row: Row[Any]) -> ScheduledKey:
    """Return a row of the ledger as applications see it."""
    is_paused = bool(row.is_paused)
    spec, phase = (row.spec, row.phase) if row.next_spec is None else (row.next_spec, row.next_phase)
    return ScheduledKey(
        job=row.job,
        key=row.key,
        spec=spec,
        phase=phase,
        next_at=None if is_paused else next_slot(row),
        args=row.args,
        priority=row.priority,
        version=row.version,
        since=row.since,
        stretch=row.stretch,
        failures=row.failures,
        paused_at=row.paused_at if is_paused else None,
        paused_until=row.ends_at if is_paused else None,
        paused_by=row.paused_by if is_paused else None,
        pause_reason=row.pause_reason if is_paused else None,
        created_at=row.created_at,
        changed_at=row.changed_at,
        changed_by=row.changed_by,
    )


def next_slot(row: Row[Any]) -> datetime | None:
    """Return the next slot of a row. If the dispatcher has not seen a change yet, the former schedule may have the next
    slot. Return None if this process cannot read the schedule.
    """
    now: datetime = row.now
    if not all(is_readable(spec) for spec in (row.spec, row.next_spec) if spec is not None):
        return None
    due = [grid(row.spec, row.phase, row.stretch).next_after(now)]
    if row.next_spec is not None:
        due.append(grid(row.next_spec, row.next_phase, row.stretch).next_after(now))
    if row.extra_at is not None and row.extra_at > now:
        due.append(row.extra_at)
    return min(due)
