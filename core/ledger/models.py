"""The ledger's tables. A state or a column name is a promise: it is never renamed."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Instant = TIMESTAMP(timezone=True)


class State(StrEnum):
    """The state of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    SKIPPED = "skipped"
    MISSED = "missed"
    ORPHANED = "orphaned"


#: A run in one of these states is over.
FINAL = (State.SUCCEEDED, State.DEAD, State.SKIPPED, State.MISSED, State.ORPHANED)
#: A run in one of these states has ended, and has not succeeded.
UNHAPPY = (State.DEAD, State.SKIPPED, State.MISSED, State.ORPHANED)
#: A run in one of these states may be claimed.
WAITING = (State.QUEUED, State.RETRYING)
#: The states of ``WAITING`` in SQL, written as in the conditions of the indexes.
IS_WAITING = "state IN ('queued', 'retrying')"
#: The run's message has not been sent. The dispatcher sends it when the run is due.
IS_UNSENT = f"{IS_WAITING} AND sent_at IS NULL"
#: The run is on its way to a worker, or parked.
IS_SENT = f"{IS_WAITING} AND sent_at IS NOT NULL"
#: ``IS_UNSENT`` for a run with a priority.
IS_URGENT = f"{IS_UNSENT} AND priority > 0"
#: ``IS_SENT`` for a run with a priority.
IS_URGENT_SENT = f"{IS_SENT} AND priority > 0"
#: The run has not passed its deadline, which applies only until the run's first start.
MAY_START = "(expires_at IS NULL OR state <> 'queued' OR attempt > 0 OR expires_at > clock_timestamp())"
#: The run waits for another run or for a limit, and is not sent before it is woken.
IS_PARKED = f"{IS_WAITING} AND sent_at = 'infinity'"
#: The run is parked, and waits for another run of its job and key.
IS_BEHIND = f"{IS_PARKED} AND waits_for IS NULL"
#: The run is parked, and waits for a limit.
IS_LIMITED = f"{IS_PARKED} AND waits_for IS NOT NULL"
#: The run was woken for a limit, and its message is on the way.
IS_CALLED = f"{IS_WAITING} AND sent_at < 'infinity' AND waits_for IS NOT NULL"


#: The same states in SQL, written as in the conditions of the indexes.
IS_UNHAPPY = "state IN ('dead', 'skipped', 'missed', 'orphaned')"
#: The run is a slot, or a request with a key that has ended. A request has an entry in the index only from its end on,
#: so that its insertion and its claim write none.
HAS_KEY = "slot IS NOT NULL OR (key <> '' AND finished_at IS NOT NULL)"
#: The run is a slot of a schedule made at run time, and has succeeded at its first attempt without a result.
IS_FORGETTABLE = "state = 'succeeded' AND slot IS NOT NULL AND key <> '' AND attempt = 1 AND result IS NULL"
#: The run is a slot that did not simply succeed in time. Runs that succeed in time never enter the index of these.
IS_NOTABLE = (
    "slot IS NOT NULL AND (state IN ('retrying', 'dead', 'skipped', 'missed', 'orphaned') OR attempt > 1 "
    "OR started_at - slot > interval '30 seconds')"
)


class Base(DeclarativeBase):
    """The base class of the ledger's tables, with its own metadata."""


class RunRow(Base):
    """A run of one job and key: of one slot, or of one request, which has no slot."""

    __tablename__ = "rota_runs"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text, server_default="")
    slot: Mapped[datetime | None] = mapped_column(Instant)
    queue: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default=State.QUEUED)
    #: Why the run is dead, skipped, missed or orphaned, or why it is waiting. Operators read it.
    reason: Mapped[str | None] = mapped_column(Text)
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: Whether the run must not run at the same time as another exclusive run of its job and key.
    exclusive: Mapped[bool] = mapped_column(server_default=text("true"))
    #: The number of claims of the run, without claims that were undone.
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    #: The number of attempts that ended in an error.
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    #: The number of attempts that ended because their process died.
    crashes: Mapped[int] = mapped_column(server_default=text("0"))
    #: The fencing token. Every claim draws a token from a sequence, so that later claims have greater tokens.
    token: Mapped[int | None] = mapped_column(BigInteger)
    #: The process that has the lease. The lease ends when this process loses its row in rota_processes.
    process_id: Mapped[int | None] = mapped_column(BigInteger)
    #: The name of the last process that claimed the run.
    worker: Mapped[str | None] = mapped_column(Text)
    queued_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    #: The run cannot be claimed before this time.
    due_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    #: The time when the run's message was last sent to Redis; null if the dispatcher must send it; infinity if the run
    #: is parked.
    sent_at: Mapped[datetime | None] = mapped_column(Instant)
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    finished_at: Mapped[datetime | None] = mapped_column(Instant)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    result: Mapped[Any | None] = mapped_column(JSONB)
    error: Mapped[str | None] = mapped_column(Text)
    #: The state and the reason before the run was orphaned, dropped or cancelled. Adopting an orphan restores them.
    former_state: Mapped[str | None] = mapped_column(Text)
    former_reason: Mapped[str | None] = mapped_column(Text)
    #: The time when a person last retried the dead run, and the number of its attempts at that time.
    retried_at: Mapped[datetime | None] = mapped_column(Instant)
    retried_after: Mapped[int | None]
    #: The forms of the run's job (``core/jobs/arguments.py``) that do not accept the run's arguments, as far as
    #: processes have found.
    refused_by: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: 0 to 9. Runs with a larger priority start first.
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    #: The names of the run's limits, filled from its arguments; null for a run without limits.
    limits: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: The names of the run's limits as the job declares them, in the same order as in ``limits``.
    limits_declared: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: The token of the last claim that has checked the run's limits. No other claim can set the run to ``running``.
    limits_token: Mapped[int | None] = mapped_column(BigInteger)
    #: The limit that the run waits for, or that had room when the run was woken. Kept until the next claim of the run.
    waits_for: Mapped[str | None] = mapped_column(Text)
    #: The run is missed if it has not started by this time.
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    #: The number of times that the run's function has postponed it, and the time of the first postponement.
    laters: Mapped[int | None]
    later_since: Mapped[datetime | None] = mapped_column(Instant)
    #: The row that the run is about, as ``table:id``.
    subject: Mapped[str | None] = mapped_column(Text)
    #: The run that enqueued this run.
    parent_id: Mapped[int | None] = mapped_column(BigInteger)
    #: The schedule made at run time that the run's slot belongs to.
    schedule_id: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        # A null is distinct from any other, so requests are never in conflict. ``id`` is there for lists of a key.
        Index(
            "rota_runs_slot",
            "job",
            "key",
            "slot",
            unique=True,
            postgresql_include=["id"],
            postgresql_where=HAS_KEY,
        ),
        Index("rota_runs_history", "job", "id"),
        Index("rota_runs_unsent", "queue", "job", "due_at", postgresql_where=IS_UNSENT),
        Index("rota_runs_sent", "queue", "job", "sent_at", postgresql_where=IS_SENT),
        Index("rota_runs_late", "slot", postgresql_where="state = 'queued' AND slot IS NOT NULL"),
        Index("rota_runs_lease", "job", "key", unique=True, postgresql_where="state = 'running' AND exclusive"),
        Index("rota_runs_running", "process_id", postgresql_where="state = 'running'"),
        Index("rota_runs_unhappy", "state", "finished_at", "id", postgresql_where=IS_UNHAPPY),
        Index("rota_runs_unhappy_of_job", "job", "state", "finished_at", "id", postgresql_where=IS_UNHAPPY),
        Index("rota_runs_finished", "finished_at", postgresql_where="finished_at IS NOT NULL"),
        Index(
            "rota_runs_turn",
            "job",
            "key",
            "due_at",
            "id",
            postgresql_where=f"{IS_WAITING} AND (exclusive OR key <> '')",
        ),
        Index("rota_runs_parked", "job", "key", "priority", postgresql_where=IS_BEHIND),
        Index("rota_runs_limited", "waits_for", text("priority DESC"), "due_at", "id", postgresql_where=IS_LIMITED),
        Index("rota_runs_called", "waits_for", "sent_at", postgresql_where=IS_CALLED),
        Index("rota_runs_urgent", "queue", "job", "priority", "due_at", postgresql_where=IS_URGENT),
        Index("rota_runs_urgent_sent", "queue", "job", "priority", "sent_at", postgresql_where=IS_URGENT_SENT),
        Index("rota_runs_keys", "queue", "job", "key", "due_at", postgresql_where=f"{IS_UNSENT} AND key <> ''"),
        Index("rota_runs_expiring", "expires_at", postgresql_where="state = 'queued' AND expires_at IS NOT NULL"),
        Index("rota_runs_children", "parent_id", "id", postgresql_where="parent_id IS NOT NULL"),
        Index("rota_runs_forgettable", "job", "finished_at", postgresql_where=IS_FORGETTABLE),
        Index("rota_runs_notable", "job", "slot", postgresql_where=IS_NOTABLE),
        CheckConstraint("priority BETWEEN 0 AND 9", name="rota_runs_priority"),
    )


class ProcessRow(Base):
    """A live worker or scheduler. Its leases are good as long as this row exists and has not expired."""

    __tablename__ = "rota_processes"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    #: host:pid, for people.
    name: Mapped[str] = mapped_column(Text)
    #: The id that Dramatiq gave to the process's broker. Redis lists the messages that the process has fetched under
    #: this id.
    broker_id: Mapped[str | None] = mapped_column(Text)
    #: The application_name of the process's connections to PostgreSQL.
    application: Mapped[str] = mapped_column(Text)
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    #: The number of runs that the process works on at the same time; null for a scheduler.
    threads: Mapped[int | None]
    #: The number of threads that are reserved for each queue; null if no threads are reserved.
    reserved: Mapped[dict[str, int] | None] = mapped_column(JSONB)
    #: The fingerprint of the process's release; null for a Rota version without releases.
    release: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    expires_at: Mapped[datetime] = mapped_column(Instant)


class ReleaseRow(Base):
    """A release: the jobs of the processes that registered with its fingerprint."""

    __tablename__ = "rota_releases"

    fingerprint: Mapped[str] = mapped_column(Text, primary_key=True)
    #: Each job with its plugin, queue, schedule and options.
    jobs: Mapped[dict[str, Any]] = mapped_column(JSONB)
    #: The numbers of each limit that the jobs declare, by the limit's declared name. They are a column of their own,
    #: since every claim under a limit reads them.
    limits: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    first_seen_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    last_seen_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))


class ScheduleRow(Base):
    """The time up to which a job's slots are accounted for, and the last slot of the job that succeeded."""

    __tablename__ = "rota_schedules"

    job: Mapped[str] = mapped_column(Text, primary_key=True)
    #: The schedule as text. When the schedule changes, accounting starts again from that time.
    spec: Mapped[str] = mapped_column(Text)
    accounted_until: Mapped[datetime] = mapped_column(Instant)
    #: The newest slot that succeeded, and the time when its run finished, as the dispatcher last read them.
    succeeded_slot: Mapped[datetime | None] = mapped_column(Instant)
    succeeded_at: Mapped[datetime | None] = mapped_column(Instant)


class KeyScheduleRow(Base):
    """A schedule made at run time, of one key of a job. The row does not change when a slot comes due."""

    __tablename__ = "rota_key_schedules"

    job: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    #: A schedule that is removed and made again gets a new id.
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    #: Grows with each change of the schedule. It does not grow when the dispatcher sees the change.
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    #: The plugin of the job.
    plugin: Mapped[str] = mapped_column(Text)
    #: The schedule as text, the interval in seconds (null for cron), and the phase: the seconds that are added to each
    #: slot.
    spec: Mapped[str] = mapped_column(Text)
    every_seconds: Mapped[int | None]
    #: The phase of a cron schedule is less than this number.
    spread_seconds: Mapped[int] = mapped_column(server_default=text("0"))
    phase: Mapped[int]
    #: The new schedule, which applies when the dispatcher has seen the change.
    next_spec: Mapped[str | None] = mapped_column(Text)
    next_every_seconds: Mapped[int | None]
    next_spread_seconds: Mapped[int | None]
    next_phase: Mapped[int | None]
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: The priority of the schedule's runs; null for the priority of the job.
    priority: Mapped[int | None] = mapped_column(SmallInteger)
    subject: Mapped[str | None] = mapped_column(Text)
    #: Whether the dispatcher has seen the last change of the schedule, the pause or the stretch.
    is_seen: Mapped[bool] = mapped_column(server_default=text("false"))
    #: Only slots after this time come due; null until the dispatcher has seen the row.
    since: Mapped[datetime | None] = mapped_column(Instant)
    #: An additional slot: the next slot of the former schedule, if it comes before the next slot of this schedule.
    extra_at: Mapped[datetime | None] = mapped_column(Instant)
    #: Back-off: the time between two slots is doubled ``stretch`` times, see ``core/jobs/grid.py``. ``failures`` is the
    #: number of runs that died in a row.
    stretch: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    #: The stretch that the dispatcher has seen. It applies to slots after ``stretched_since``.
    stretched: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    stretched_since: Mapped[datetime | None] = mapped_column(Instant)
    #: The last pause. It lasts until ``paused_until``, which may be ``infinity``.
    paused_at: Mapped[datetime | None] = mapped_column(Instant)
    paused_until: Mapped[datetime | None] = mapped_column(Instant)
    paused_by: Mapped[str | None] = mapped_column(Text)
    pause_reason: Mapped[str | None] = mapped_column(Text)
    #: The pause that the dispatcher has seen applies to slots after this time; null if the dispatcher has seen no
    #: pause.
    held_since: Mapped[datetime | None] = mapped_column(Instant)
    created_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    changed_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    changed_by: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        Index("rota_key_schedules_grid", "job", "every_seconds", "phase"),
        Index(
            "rota_key_schedules_next",
            "job",
            "next_every_seconds",
            "next_phase",
            postgresql_where="next_spec IS NOT NULL",
        ),
        Index("rota_key_schedules_unseen", "job", "key", postgresql_where="NOT is_seen"),
        Index("rota_key_schedules_paused", "job", "paused_until", postgresql_where="paused_at IS NOT NULL"),
        Index("rota_key_schedules_extra", "job", "extra_at", postgresql_where="extra_at IS NOT NULL"),
    )


class KeyScheduleLogRow(Base):
    """A change of a schedule made at run time, as `rota why` reads it."""

    __tablename__ = "rota_key_schedule_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    #: The change applies to slots after this time; null until the dispatcher has seen the change.
    since: Mapped[datetime | None] = mapped_column(Instant)
    #: ``added``, ``changed``, ``stretched``, ``paused``, ``resumed`` or ``removed``.
    action: Mapped[str] = mapped_column(Text)
    #: The schedule after the change. For a removal, this is the removed schedule.
    spec: Mapped[str] = mapped_column(Text)
    phase: Mapped[int]
    stretched: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    extra_at: Mapped[datetime | None] = mapped_column(Instant)
    by: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("rota_key_schedule_log_key", "job", "key", "id"),
        Index("rota_key_schedule_log_at", "at"),
        Index("rota_key_schedule_log_unseen", "job", postgresql_where="since IS NULL"),
    )


class SuccessCountRow(Base):
    """The number of deleted runs that finished in one minute, of a job with ``keep="failures"``."""

    __tablename__ = "rota_success_counts"

    job: Mapped[str] = mapped_column(Text, primary_key=True)
    minute: Mapped[datetime] = mapped_column(Instant, primary_key=True)
    runs: Mapped[int] = mapped_column(BigInteger)
    #: The times when the first and the last of these runs finished, and their oldest and newest slots.
    first_at: Mapped[datetime] = mapped_column(Instant)
    last_at: Mapped[datetime] = mapped_column(Instant)
    first_slot: Mapped[datetime] = mapped_column(Instant)
    last_slot: Mapped[datetime] = mapped_column(Instant)

    __table_args__ = (Index("rota_success_counts_minute", "minute"),)


class RunCountRow(Base):
    """The number of runs of a job that ended in one minute with one outcome, after about the same time.

    Counts that are older than three days are summed up by the hour.
    """

    __tablename__ = "rota_run_counts"

    job: Mapped[str] = mapped_column(Text, primary_key=True)
    minute: Mapped[datetime] = mapped_column(Instant, primary_key=True)
    #: The state of the runs; ``dropped`` or ``cancelled`` for dead runs that were withdrawn.
    outcome: Mapped[str] = mapped_column(Text, primary_key=True)
    #: How long the last attempt took, as a class of ``core/ledger/run_counts.py``.
    took: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    runs: Mapped[int] = mapped_column(BigInteger)
    #: The sum of the milliseconds.
    took_ms: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("rota_run_counts_minute", "minute"),)


class GapRow(Base):
    """A time in which slots of schedules made at run time came due and got no run."""

    __tablename__ = "rota_gaps"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job: Mapped[str] = mapped_column(Text)
    #: The key whose slots got no run; null if these are slots of all keys of the job.
    key: Mapped[str | None] = mapped_column(Text)
    #: The gap has the slots with ``began_at`` < slot <= ``ended_at``.
    began_at: Mapped[datetime] = mapped_column(Instant)
    ended_at: Mapped[datetime] = mapped_column(Instant)
    #: Why the slots got no run: ``outage``, ``paused``, ``backoff`` or ``absent``.
    reason: Mapped[str] = mapped_column(Text)
    #: The number of slots in the gap.
    slots: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        Index("rota_gaps_key", "job", "key", "ended_at"),
        Index("rota_gaps_ended", "ended_at"),
    )


class PauseRow(Base):
    """A period in which the jobs of a scope are not started."""

    __tablename__ = "rota_pauses"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    #: ``everything``, ``plugin:NAME``, ``queue:NAME`` or ``job:NAME``.
    scope: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    paused_by: Mapped[str] = mapped_column(Text)
    paused_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    #: The time when the pause ends or has ended; ``infinity`` until a person ends it.
    until: Mapped[datetime] = mapped_column(Instant, server_default="infinity")

    __table_args__ = (Index("rota_pauses_until", "until"),)


class AuditRow(Base):
    """An action of a person. The row has only names and counts, since values of arguments may be personal data."""

    __tablename__ = "rota_audit"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    actor: Mapped[str] = mapped_column(Text)
    #: The interface that the person used, such as ``cli``.
    via: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    target: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))

    __table_args__ = (Index("rota_audit_at", "at"),)


class AttemptRow(Base):
    """An attempt that did not succeed, or that came after such an attempt."""

    __tablename__ = "rota_attempts"

    run_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    ended_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    worker: Mapped[str | None] = mapped_column(Text)
    #: The outcome: ``succeeded``, ``failed``, ``crashed``, ``later``, ``released`` or ``cancelled``.
    outcome: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    traceback: Mapped[str | None] = mapped_column(Text)
    #: The last lines that the attempt has logged.
    log: Mapped[str | None] = mapped_column(Text)


class CancelRow(Base):
    """A cancellation of a running run. The row is deleted when the run ends."""

    __tablename__ = "rota_cancels"

    run_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    #: The fencing token of the cancelled attempt, as its process knows it.
    token: Mapped[int] = mapped_column(BigInteger)
    process_id: Mapped[int | None] = mapped_column(BigInteger)
    asked_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    asked_by: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)


class LimitRow(Base):
    """The use of one limit, as the last claim under the limit recorded it.

    A claim writes the row under the limit's lock, and so does a claim that is undone and gives its token back. A row
    that no claim has used for an hour is deleted.
    """

    __tablename__ = "rota_limits"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    #: The limit's name as the job declares it.
    declared: Mapped[str] = mapped_column(Text)
    #: The runs that held the limit at the last claim, and the run of that claim. The runs that are still running hold
    #: the limit.
    holders: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    #: The number of runs that could still start after the last claim, if the limit has a rate.
    tokens: Mapped[float | None]
    #: The time of the last claim.
    used_at: Mapped[datetime] = mapped_column(Instant)
    #: The time when all tokens will be back, if no other run starts.
    full_at: Mapped[datetime | None] = mapped_column(Instant)


class ClosingRow(Base):
    """A time in which a limit is closed. A row is never updated, so no claim waits for the transaction that closes the
    limit.
    """

    __tablename__ = "rota_closings"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    until: Mapped[datetime] = mapped_column(Instant)
    reason: Mapped[str | None] = mapped_column(Text)
    closed_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))

    __table_args__ = (Index("rota_closings_name", "name", "until"),)


class DepartureRow(Base):
    """A process that has ended, and the reason."""

    __tablename__ = "rota_departures"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    process_id: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    started_at: Mapped[datetime] = mapped_column(Instant)
    left_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    #: Why the process ended: ``stopped``, ``lost PostgreSQL``, ``died`` or ``no heartbeat``.
    reason: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index("rota_departures_left", "left_at"),)


class CredentialRow(Base):
    """A secret with which a person or a program authenticates to the HTTP service. The row has only the secret's
    hash.
    """

    __tablename__ = "rota_credentials"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    #: ``token``, ``link`` or ``session``. A link logs a browser in, once, and the browser then has a session.
    kind: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    #: The SHA-256 of the secret. No salt is needed, since the secret has 256 random bits.
    hash: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    #: The plugins and the queues whose jobs its holder may see and act on; null for all.
    plugins: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    queues: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    sees_arguments: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    created_by: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(Instant)
    #: The minute in which the secret was last used.
    used_at: Mapped[datetime | None] = mapped_column(Instant)

    __table_args__ = (
        Index("rota_credentials_hash", "hash", unique=True),
        Index("rota_credentials_name", "name", unique=True, postgresql_where="kind = 'token'"),
        CheckConstraint("kind IN ('token', 'link', 'session')", name="rota_credentials_kind"),
        CheckConstraint("role IN ('viewer', 'operator', 'admin')", name="rota_credentials_role"),
    )


class RequestedRow(Base):
    """A run that was requested over HTTP with an idempotency key, so that a request that is sent twice counts once."""

    __tablename__ = "rota_requested"

    caller: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    #: A hash of the request.
    fingerprint: Mapped[str] = mapped_column(Text)
    run_id: Mapped[int | None] = mapped_column(BigInteger)
    requested_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))

    __table_args__ = (Index("rota_requested_at", "requested_at"),)


class OperationRow(Base):
    """A plan to change many runs or to clean up Redis, and its progress once a person has confirmed the plan."""

    __tablename__ = "rota_operations"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    action: Mapped[str] = mapped_column(Text)
    #: ``planned`` until it is confirmed, ``running``, ``stopped`` when a right is missing, ``done`` or ``cancelled``.
    state: Mapped[str] = mapped_column(Text, server_default="planned")
    #: How the runs were selected, the rate, the reason, and whether a clean-up also removes old dead letters.
    options: Mapped[dict[str, Any]] = mapped_column(JSONB)
    #: The number of runs of each job.
    by_job: Mapped[dict[str, int]] = mapped_column(JSONB, server_default=text("'{}'"))
    total: Mapped[int] = mapped_column(server_default=text("0"))
    #: The hash of the action and of all items. A person confirms a plan by its digest.
    digest: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    created_by: Mapped[str] = mapped_column(Text)
    #: The plan cannot be confirmed after this time.
    expires_at: Mapped[datetime] = mapped_column(Instant)
    #: The person who confirmed the plan, with their rights at that time.
    actor: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    confirmed_at: Mapped[datetime | None] = mapped_column(Instant)
    #: The entry in the audit, which has the number of changed runs.
    audit_id: Mapped[int | None] = mapped_column(BigInteger)
    #: The last run of the job that carries out the operation.
    run_id: Mapped[int | None] = mapped_column(BigInteger)
    #: The number of items that were changed or left out.
    position: Mapped[int] = mapped_column(server_default=text("0"))
    changed: Mapped[int] = mapped_column(server_default=text("0"))
    finished_at: Mapped[datetime | None] = mapped_column(Instant)
    ended_by: Mapped[str | None] = mapped_column(Text)
    ended_because: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        CheckConstraint(
            "state IN ('planned', 'running', 'stopped', 'done', 'cancelled')", name="rota_operations_state"
        ),
        CheckConstraint("action IN ('retry', 'drop', 'cancel', 'adopt', 'cleanup')", name="rota_operations_action"),
    )


class OperationItemsRow(Base):
    """Up to a thousand items of a plan, and which of them were left out."""

    __tablename__ = "rota_operation_items"

    operation_id: Mapped[int] = mapped_column(ForeignKey("rota_operations.id", ondelete="CASCADE"), primary_key=True)
    chunk: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: The runs, and the version of each run when the plan was made.
    ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=text("'{}'"))
    versions: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=text("'{}'"))
    #: The leftovers in Redis, as JSON.
    places: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    #: The items that were left out, and the reason for each of them.
    left_out: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    left_because: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
