"""Accounts for the slots of schedules made at run time: applies changes of the schedules, and inserts a run for each
due slot.

Only the leading dispatcher does this, in each pass. It needs only PostgreSQL, so it also works in local mode and while
Redis is away. The runs are inserted without messages. The dispatcher sends the messages afterwards, as for all other
due runs.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection

from core.dispatcher.steps import Steps
from core.jobs.registry import Registry
from core.ledger import history, key_slots, key_standings, pauses, slots, successes
from core.ledger.key_slots import ABSENT, BY_KEY, NO_CRONS, Asked, Crons, KeyedJob
from core.ledger.releases import Fleet
from core.ledger.slots import Watermark
from core.observability import metrics
from core.observability.events import ScheduleUnreadable, SlotSkipped, emit
from core.scheduling import plan
from core.scheduling.misfires import report_missed
from core.scheduling.plan import Window

#: How often a job's watermark is stored while no slot comes due. A new leader begins at the stored watermark.
STORED_EVERY = timedelta(seconds=10)


def keyed_jobs(registry: Registry, fleet: Fleet) -> Iterable[KeyedJob]:
    """Return the jobs whose keys have schedules: the jobs of this process, and those of other live processes."""
    declared = {job.name: KeyedJob.declared(job, registry.scopes[job.name]) for job in registry.keyed()}
    theirs = {
        name: KeyedJob.recorded(name, options) for name, options in fleet.keyed.items() if name not in registry.jobs
    }
    return {**theirs, **declared}.values()


@dataclass(slots=True)
class KeyAccountant:
    """Accounts for the slots of all jobs whose keys have schedules. A job's watermark is stored with its runs."""

    registry: Registry
    #: Whether this leader holds ``KEY_SLOTS_LOCK``, so that no other leader accounts for these slots. The leader keeps
    #: the lock until its connection ends.
    is_alone: bool = False
    #: For each job, the time up to which its slots are accounted for, and the time that the ledger has.
    reached: dict[str, datetime] = field(default_factory=dict)
    stored: dict[str, datetime] = field(default_factory=dict)
    #: The value of ``reached`` when the last pass began. A new leader does not know it.
    before: dict[str, datetime] = field(default_factory=dict)
    #: The time between each job's watermark and the beginning of the last pass, in seconds. No slot has waited longer.
    lag_seconds: dict[str, float] = field(default_factory=dict)
    #: An error with one job does not stop the slots of the others.
    steps: Steps = field(default_factory=Steps)
    #: The jobs and cron expressions that were logged as unreadable.
    unreadable: set[tuple[str, str]] = field(default_factory=set)

    def account(self, connection: Connection, fleet: Fleet) -> int:
        """Account for all slots that are due. Return how many runs were inserted."""
        jobs = {job.name: job for job in keyed_jobs(self.registry, fleet)}
        for gone in self.reached.keys() - jobs.keys():
            del self.reached[gone], self.stored[gone]
            self.before.pop(gone, None)
        self.is_alone = bool(jobs) and (self.is_alone or key_slots.is_alone(connection))
        if not self.is_alone:
            return 0
        now, self.lag_seconds = history.now(connection), {}
        inserted = sum(
            self.steps.take(f"key slots of {job.name}", self._account_for, connection, job, now) or 0
            for job in jobs.values()
        )
        metrics.schedules_lag(self.lag_seconds)
        return inserted

    def _account_for(self, connection: Connection, job: KeyedJob, now: datetime) -> int:
        after = self._after(connection, job, now)
        self.lag_seconds[job.name] = max((now - after).total_seconds(), 0.0)
        now = max(now, after)  # after a failover, the clock of the new server may be behind
        asked = key_slots.ask(connection, job.name, now)
        has_changed = asked.has_changes
        if has_changed:
            before = self.before.get(job.name, after - STORED_EVERY)
            tell(job, key_standings.see(connection, job.name, after, now, before=before))
            asked = key_slots.ask(connection, job.name, now)
        found = key_slots.crons(connection, job.name) if asked.has_cron else NO_CRONS
        self._tell_unreadable(job, found)
        paused = pauses.of_scopes(pauses.not_over_at(connection, after), job.scopes)
        accounting = JobAccount(connection, job, asked, found, now, plan.windows(after, now, paused), after)
        inserted = 0
        for place, window in enumerate(accounting.windows):
            inserted += accounting.account(place)
            self.reached[job.name] = accounting.reached
            if accounting.reached < window.until:
                break
        self.before[job.name] = after
        self._remember(connection, job, accounting, must=has_changed)
        return inserted

    def _tell_unreadable(self, job: KeyedJob, found: Crons) -> None:
        for spec in found.unreadable:
            if (job.name, spec) not in self.unreadable:
                self.unreadable.add((job.name, spec))
                emit(ScheduleUnreadable(job.name, spec))

    def _after(self, connection: Connection, job: KeyedJob, now: datetime) -> datetime:
        """Return the job's watermark. If the job is new, or no process had it for a long time, it gets a watermark at
        the present time.

        The watermark never moves back, since the runs of slots before it may have been deleted.
        """
        if job.name not in self.reached:
            mark = history.watermark(connection, job.name)
            if mark is not None and mark.spec == BY_KEY:
                self.reached[job.name] = self.stored[job.name] = mark.accounted_until
            else:
                begins = max(now, successes.last_slot(connection, job.name) or now)
                tell(job, {ABSENT: key_slots.end_absence(connection, job, begins)})
                self._store(connection, job, begins)
        return self.reached[job.name]

    def _remember(self, connection: Connection, job: KeyedJob, accounting: "JobAccount", *, must: bool) -> None:
        if accounting.is_stored:
            self.stored[job.name] = accounting.reached
        elif must or accounting.reached >= self.stored[job.name] + STORED_EVERY:
            self._store(connection, job, accounting.reached)

    def _store(self, connection: Connection, job: KeyedJob, reached: datetime) -> None:
        slots.account(connection, {job.name: Watermark(BY_KEY, reached)})
        self.reached[job.name] = self.stored[job.name] = reached


@dataclass(slots=True)
class JobAccount:
    """Accounts for the slots of one job in one pass."""

    connection: Connection
    job: KeyedJob
    asked: Asked
    crons: Crons
    now: datetime
    windows: Sequence[Window]
    #: The time up to which slots are accounted for, and whether the ledger has stored it.
    reached: datetime
    is_stored: bool = False

    def account(self, place: int) -> int:
        """Account for the slots of one window. Return how many runs were inserted."""
        window = self.windows[place]
        if window.is_paused:
            return self._leave_out(window.until, "paused")
        late, inserted = min(plan.late_until(self.now), window.until), 0
        if window.after < late:
            inserted = self._by_policy(late, place)
            if self.reached < late:
                return inserted
        return inserted + (self._insert(window.until) if self.reached < window.until else 0)

    def _insert(self, until: datetime) -> int:
        inserted, self.is_stored = key_slots.insert(
            self.connection, self.job, self.asked, self.crons, self.reached, until, mark=False
        )
        self.reached = until
        return inserted

    def _leave_out(self, until: datetime, reason: str) -> int:
        left_out = key_slots.leave_out(self.connection, self.job, self.crons, self.reached, until, reason)
        tell(self.job, {reason: left_out})
        self.reached, self.is_stored = until, True
        return 0

    def _by_policy(self, late: datetime, place: int) -> int:
        """Account for late slots by the job's misfire policy."""
        if self.job.misfire == "skip":
            return self._leave_out(late, "outage")
        if self.job.misfire == "latest":
            after_it = [(late, self.windows[place].until)]
            later = [*after_it, *((each.after, each.until) for each in self.windows[place + 1 :] if not each.is_paused)]
            inserted, left_out, until = key_slots.keep_newest(
                self.connection, self.job, self.crons, self.reached, late, oldest=self.now - self.job.grace, later=later
            )
            self.reached, self.is_stored = until, True
        else:
            until = key_slots.part(self.connection, self.job, self.crons, self.reached, late)
            inserted, left_out = key_slots.keep_all(
                self.connection, self.job, self.crons, self.reached, until, now=self.now
            )
            self.reached, self.is_stored = until, True
        tell(self.job, {"outage": left_out})
        return inserted


def tell(job: KeyedJob, left_out: Mapping[str, int]) -> None:
    """Log and count the slots that got no run."""
    for reason, count in left_out.items():
        if count:
            metrics.slots_in_gap(job.name, reason, count)
        if count and reason == "outage":
            why = f"misfire={job.misfire}; one row of rota_gaps has their number"
            report_missed(job.name, Counter({reason: count}), why)
        elif count:
            emit(SlotSkipped(job.name, count, reason))
