"""The ledger's tables. A state or a column name is a promise: it is never renamed."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, SmallInteger, Text, text
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


#: A run in one of these is over.
FINAL = (State.SUCCEEDED, State.DEAD, State.SKIPPED, State.MISSED, State.ORPHANED)
#: A run in one of these may be claimed.
WAITING = (State.QUEUED, State.RETRYING)
#: The same in SQL, written as in the conditions of the indexes.
IS_WAITING = "state IN ('queued', 'retrying')"
#: The dispatcher must send it when it is due.
IS_UNSENT = f"{IS_WAITING} AND sent_at IS NULL"
#: It is on its way to a worker, or parked.
IS_SENT = f"{IS_WAITING} AND sent_at IS NOT NULL"
#: The same for runs with a priority.
IS_URGENT = f"{IS_UNSENT} AND priority > 0"
IS_URGENT_SENT = f"{IS_SENT} AND priority > 0"
#: It has not passed its deadline, which applies only until its first start.
MAY_START = "(expires_at IS NULL OR state <> 'queued' OR attempt > 0 OR expires_at > clock_timestamp())"
#: The same for a run that has started, as a constraint: claims of the release before know no deadlines. A run that was
#: started or retried before has an error or the time of the retry.
STARTS_IN_TIME = (
    "expires_at IS NULL OR state <> 'running' OR started_at < expires_at OR attempt > 1 OR error IS NOT NULL "
    "OR retried_at IS NOT NULL"
)
#: It waits for another run or for a limit, and is not sent before it is woken.
IS_PARKED = f"{IS_WAITING} AND sent_at = 'infinity'"
#: The same for a run that waits for another run of its job and key, and for one that waits for a limit.
IS_BEHIND = f"{IS_PARKED} AND waits_for IS NULL"
IS_LIMITED = f"{IS_PARKED} AND waits_for IS NOT NULL"
#: It was woken for a limit, and its message is on the way.
IS_CALLED = f"{IS_WAITING} AND sent_at < 'infinity' AND waits_for IS NOT NULL"


class Base(DeclarativeBase):
    """The base of the ledger's tables, with its own metadata."""


class RunRow(Base):
    """One run, of one (job, key, slot) or of a request, which has no slot."""

    __tablename__ = "rota_runs"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text, server_default="")
    slot: Mapped[datetime | None] = mapped_column(Instant)
    queue: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default=State.QUEUED)
    #: Why it was skipped, missed or orphaned, or why it is waiting; for operators.
    reason: Mapped[str | None] = mapped_column(Text)
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: Whether no other run of its job and key may run at the same time.
    exclusive: Mapped[bool] = mapped_column(server_default=text("true"))
    #: How many times it was claimed.
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    #: How many attempts ended in an error.
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    #: How many attempts ended because their process died.
    crashes: Mapped[int] = mapped_column(server_default=text("0"))
    #: The fencing token: every claim draws one from a sequence, so that later claims have greater tokens.
    token: Mapped[int | None] = mapped_column(BigInteger)
    #: The process that holds the lease, as long as that has a row in rota_processes.
    process_id: Mapped[int | None] = mapped_column(BigInteger)
    #: The name of the process that claimed it last.
    worker: Mapped[str | None] = mapped_column(Text)
    queued_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    #: It cannot be claimed before this time.
    due_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    #: When its message was last sent to Redis; null if the dispatcher must send it.
    sent_at: Mapped[datetime | None] = mapped_column(Instant)
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    finished_at: Mapped[datetime | None] = mapped_column(Instant)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    result: Mapped[Any | None] = mapped_column(JSONB)
    error: Mapped[str | None] = mapped_column(Text)
    #: The state and reason before it was orphaned or dropped; adopting an orphan restores them.
    former_state: Mapped[str | None] = mapped_column(Text)
    former_reason: Mapped[str | None] = mapped_column(Text)
    #: When a person last retried it after it was dead, and how many attempts it had at that time.
    retried_at: Mapped[datetime | None] = mapped_column(Instant)
    retried_after: Mapped[int | None]
    #: The forms of its job (``core/jobs/arguments.py``) that its arguments do not fit, as processes have found.
    refused_by: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: 0 to 9; runs with a larger priority start first.
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    #: The names of its limits, filled from its arguments; null without limits.
    limits: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: The same names as the job declares them, in the same order.
    limits_declared: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: The token of the last claim that has looked at its limits. A claim that has not cannot set it to ``running``.
    limits_token: Mapped[int | None] = mapped_column(BigInteger)
    #: The limit that it waits for, or that had room when it was woken; kept until its next claim.
    waits_for: Mapped[str | None] = mapped_column(Text)
    #: It is missed if it has not started by this time.
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    #: How many times its function has postponed it, and when it did so first.
    laters: Mapped[int | None]
    later_since: Mapped[datetime | None] = mapped_column(Instant)
    #: The row that it is about, as ``table:id``.
    subject: Mapped[str | None] = mapped_column(Text)
    #: The run that enqueued it.
    parent_id: Mapped[int | None] = mapped_column(BigInteger)
    #: The schedule made at run time that its slot is of.
    schedule_id: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        Index("rota_runs_slot", "job", "key", "slot", unique=True, postgresql_where="slot IS NOT NULL"),
        Index("rota_runs_history", "job", "id"),
        Index("rota_runs_unsent", "queue", "job", "due_at", postgresql_where=IS_UNSENT),
        Index("rota_runs_sent", "queue", "job", "sent_at", postgresql_where=IS_SENT),
        Index("rota_runs_late", "slot", postgresql_where="state = 'queued' AND slot IS NOT NULL"),
        Index("rota_runs_lease", "job", "key", unique=True, postgresql_where="state = 'running' AND exclusive"),
        Index("rota_runs_running", "process_id", postgresql_where="state = 'running'"),
        Index("rota_runs_orphaned", "job", "id", postgresql_where="state = 'orphaned'"),
        Index("rota_runs_dead", "id", postgresql_where="state = 'dead'"),
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
        Index("rota_runs_unstarted", "state", "id", postgresql_where="state IN ('skipped', 'missed')"),
        CheckConstraint("priority BETWEEN 0 AND 9", name="rota_runs_priority"),
        CheckConstraint(
            "state <> 'running' OR limits IS NULL OR limits_token IS NOT DISTINCT FROM token", name="rota_runs_limits"
        ),
        CheckConstraint(STARTS_IN_TIME, name="rota_runs_starts_in_time"),
    )


class ProcessRow(Base):
    """A live worker or scheduler; its leases are good as long as this row exists and has not expired."""

    __tablename__ = "rota_processes"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    #: host:pid, for people.
    name: Mapped[str] = mapped_column(Text)
    #: Dramatiq's id of its broker, under which Redis lists the messages that it has fetched.
    broker_id: Mapped[str | None] = mapped_column(Text)
    #: The application_name of its connections to PostgreSQL.
    application: Mapped[str] = mapped_column(Text)
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    #: How many runs it works on at the same time; null for a scheduler.
    threads: Mapped[int | None]
    #: The fingerprint of its release; null for a Rota version without releases.
    release: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    expires_at: Mapped[datetime] = mapped_column(Instant)


class ReleaseRow(Base):
    """The jobs of every process that ever registered, by the release's fingerprint."""

    __tablename__ = "rota_releases"

    fingerprint: Mapped[str] = mapped_column(Text, primary_key=True)
    #: Each job with its plugin, queue, schedule and options.
    jobs: Mapped[dict[str, Any]] = mapped_column(JSONB)
    #: The numbers of each limit that the jobs declare, by its declared name; apart, since every limited claim reads it.
    limits: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    first_seen_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    last_seen_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))


class ScheduleRow(Base):
    """The instant up to which a job's slots are accounted for, and its last slot that succeeded."""

    __tablename__ = "rota_schedules"

    job: Mapped[str] = mapped_column(Text, primary_key=True)
    #: The schedule as text; when it changes, accounting starts again from now.
    spec: Mapped[str] = mapped_column(Text)
    accounted_until: Mapped[datetime] = mapped_column(Instant)
    #: The newest slot that succeeded, and when its run finished, as the dispatcher last saw it.
    succeeded_slot: Mapped[datetime | None] = mapped_column(Instant)
    succeeded_at: Mapped[datetime | None] = mapped_column(Instant)


class KeyScheduleRow(Base):
    """A schedule made at run time: of one key of a job. Coming due does not change it."""

    __tablename__ = "rota_key_schedules"

    job: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    #: The schedule gets a new id if it is removed and made again.
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    #: Grows with each change, but not when the dispatcher sees the change.
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    #: The plugin of the job.
    plugin: Mapped[str] = mapped_column(Text)
    #: The schedule as text; its interval, null for cron; and the phase that is added to each slot. Both are in seconds.
    spec: Mapped[str] = mapped_column(Text)
    every_seconds: Mapped[int | None]
    #: The phase of cron is less than this.
    spread_seconds: Mapped[int] = mapped_column(server_default=text("0"))
    phase: Mapped[int]
    #: The schedule that it becomes when the dispatcher sees the change.
    next_spec: Mapped[str | None] = mapped_column(Text)
    next_every_seconds: Mapped[int | None]
    next_spread_seconds: Mapped[int | None]
    next_phase: Mapped[int | None]
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: Null for the job's own.
    priority: Mapped[int | None] = mapped_column(SmallInteger)
    subject: Mapped[str | None] = mapped_column(Text)
    #: Whether the dispatcher has seen the last change of schedule, pause or stretch.
    is_seen: Mapped[bool] = mapped_column(server_default=text("false"))
    #: Its slots after this time count; null until the dispatcher has seen the row.
    since: Mapped[datetime | None] = mapped_column(Instant)
    #: One more slot: the next one of the schedule before, if that comes before the next one of this schedule.
    extra_at: Mapped[datetime | None] = mapped_column(Instant)
    #: Back-off: only every 2^stretch-th slot comes due. Runs that died in a row.
    stretch: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    #: The stretch that the dispatcher has seen, and the slots since when it applies to.
    stretched: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    stretched_since: Mapped[datetime | None] = mapped_column(Instant)
    #: The last pause; it lasts until ``paused_until``, which may be ``infinity``.
    paused_at: Mapped[datetime | None] = mapped_column(Instant)
    paused_until: Mapped[datetime | None] = mapped_column(Instant)
    paused_by: Mapped[str | None] = mapped_column(Text)
    pause_reason: Mapped[str | None] = mapped_column(Text)
    #: The pause that the dispatcher has seen applies to slots after this time; null if it has seen none.
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
    #: It applies to slots after this time; null until the dispatcher has seen it.
    since: Mapped[datetime | None] = mapped_column(Instant)
    #: ``added``, ``changed``, ``stretched``, ``paused``, ``resumed`` or ``removed``.
    action: Mapped[str] = mapped_column(Text)
    #: The schedule after the change; for a removal, the removed schedule.
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


class GapRow(Base):
    """A time in which slots of schedules made at run time came due and got no run of their own."""

    __tablename__ = "rota_gaps"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job: Mapped[str] = mapped_column(Text)
    #: Null: of all keys.
    key: Mapped[str | None] = mapped_column(Text)
    #: The slots after the one and up to the other.
    began_at: Mapped[datetime] = mapped_column(Instant)
    ended_at: Mapped[datetime] = mapped_column(Instant)
    #: ``outage``, ``paused``, ``backoff`` or ``absent``.
    reason: Mapped[str] = mapped_column(Text)
    #: How many slots.
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
    #: When it ends or has ended; ``infinity`` until a person ends it.
    until: Mapped[datetime] = mapped_column(Instant, server_default="infinity")

    __table_args__ = (Index("rota_pauses_until", "until"),)


class AuditRow(Base):
    """An action of a person. Names and counts only: values of arguments may be personal data."""

    __tablename__ = "rota_audit"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    actor: Mapped[str] = mapped_column(Text)
    #: The interface that was used, such as ``cli``.
    via: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    target: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))

    __table_args__ = (Index("rota_audit_at", "at"),)


class AttemptRow(Base):
    """An attempt that did not succeed, or that came after one that did not."""

    __tablename__ = "rota_attempts"

    run_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    ended_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    worker: Mapped[str | None] = mapped_column(Text)
    #: ``succeeded``, ``failed``, ``crashed``, ``later``, ``released`` or ``cancelled``.
    outcome: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    traceback: Mapped[str | None] = mapped_column(Text)
    #: The last lines that the attempt has logged.
    log: Mapped[str | None] = mapped_column(Text)


class CancelRow(Base):
    """A cancellation of a running run, until the run has ended. Only the run's process ends the run."""

    __tablename__ = "rota_cancels"

    run_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    #: The fencing token of the cancelled attempt, as its process knows it.
    token: Mapped[int] = mapped_column(BigInteger)
    process_id: Mapped[int | None] = mapped_column(BigInteger)
    asked_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    asked_by: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)


class LimitRow(Base):
    """The use of one limit, as its last claim left it. Only claims write it, under the limit's lock."""

    __tablename__ = "rota_limits"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    #: The same name as it was declared.
    declared: Mapped[str] = mapped_column(Text)
    #: The runs that were running at the last claim, and that claim's. The limit is held by those that still are.
    holders: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    #: How many runs could still start after the last claim, if the limit has a rate.
    tokens: Mapped[float | None]
    #: When the last claim was.
    used_at: Mapped[datetime] = mapped_column(Instant)
    #: When all tokens will be back, if no other run starts.
    full_at: Mapped[datetime | None] = mapped_column(Instant)


class ClosingRow(Base):
    """A time in which a limit is closed. Rows are only inserted, so a claim never waits for the transaction."""

    __tablename__ = "rota_closings"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    until: Mapped[datetime] = mapped_column(Instant)
    reason: Mapped[str | None] = mapped_column(Text)
    closed_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))

    __table_args__ = (Index("rota_closings_name", "name", "until"),)


class DepartureRow(Base):
    """A process that has ended, and why."""

    __tablename__ = "rota_departures"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    process_id: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    started_at: Mapped[datetime] = mapped_column(Instant)
    left_at: Mapped[datetime] = mapped_column(Instant, server_default=text("clock_timestamp()"))
    #: ``stopped``, ``lost PostgreSQL``, ``died`` or ``no heartbeat``.
    reason: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index("rota_departures_left", "left_at"),)
