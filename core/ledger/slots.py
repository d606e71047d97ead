"""Slots: one row for each due time of a schedule, whoever comes first, and up to when they are accounted for."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from core.jobs.job import Job
from core.ledger import pauses
from core.ledger.carrier import OutgoingRun
from core.ledger.models import State

#: A slot that nobody has started after this was missed: it is overdue, and its job's policy says what becomes of it.
TOLERANCE = timedelta(seconds=30)
#: No job is held by a pause.
NONE_HELD: Mapping[str, datetime] = {}
#: No job may be held by one.
NO_SCOPES: Mapping[str, Collection[str]] = {}


@dataclass(frozen=True, slots=True)
class SlotRow:
    """A slot to be recorded: queued, or missed with a reason. One that came due in a pause is skipped instead."""

    slot: datetime
    state: State = State.QUEUED
    reason: str | None = None


#: Rows that are inserted in one statement.
BATCH = 1000

INSERT = text("""
    INSERT INTO rota_runs (job, queue, exclusive, slot, due_at, state, reason, sent_at, finished_at)
    SELECT job, queue, exclusive, slot, slot, CASE WHEN paused THEN 'skipped' ELSE state END,
           CASE WHEN paused THEN 'paused' ELSE reason END,
           CASE WHEN state = 'queued' AND NOT paused AND :carried THEN clock_timestamp() END,
           CASE WHEN state = 'missed' OR paused THEN clock_timestamp() END
    FROM unnest(CAST(:jobs AS text[]), CAST(:queues AS text[]), CAST(:exclusives AS boolean[]),
                CAST(:slots AS timestamptz[]), CAST(:states AS text[]), CAST(:reasons AS text[]),
                CAST(:scopes AS text[]))
             AS due (job, queue, exclusive, slot, state, reason, scopes),
         LATERAL (SELECT EXISTS (
             SELECT 1 FROM rota_pauses AS pause
             WHERE pause.until > due.slot AND pause.paused_at <= due.slot
               AND pause.scope = ANY(CAST(due.scopes AS text[]))) AS paused) AS judged
    ON CONFLICT (job, key, slot) WHERE slot IS NOT NULL DO NOTHING
    RETURNING id, job, queue, state
""")

WATERMARKS = text("SELECT job, spec, accounted_until, clock_timestamp() AS now FROM rota_schedules")

ACCOUNT = text("""
    INSERT INTO rota_schedules (job, spec, accounted_until)
    SELECT * FROM unnest(CAST(:jobs AS text[]), CAST(:specs AS text[]), CAST(:instants AS timestamptz[]))
    ON CONFLICT (job) DO UPDATE SET spec = excluded.spec, accounted_until = excluded.accounted_until
""")

IS_WAITING = "state = 'queued' AND slot IS NOT NULL"

LATE_JOBS = text(f"""
    SELECT DISTINCT job FROM rota_runs
    WHERE {IS_WAITING} AND slot < statement_timestamp() - CAST(:tolerance AS interval)
""")  # noqa: S608 — a constant

#: Slots that are queued and late: all but the newest of a job are recorded as missed, and those past their grace too.
#: Of a job that is held by a pause, those that could still have been started when it began are skipped.
MISS = text("""
    WITH policy AS (
        SELECT * FROM unnest(CAST(:jobs AS text[]), CAST(:misfires AS text[]), CAST(:graces AS interval[]),
                             CAST(:caps AS int[]), CAST(:held_since AS timestamptz[]))
            AS policy (job, misfire, grace, cap, held_since)
    ), waiting AS (
        SELECT id, job, slot, row_number() OVER (PARTITION BY job, key ORDER BY slot DESC) AS place
        FROM rota_runs WHERE state = 'queued' AND slot IS NOT NULL AND slot <= clock_timestamp()
    ), verdict AS (
        SELECT id, CASE
            WHEN held_since < slot + grace THEN 'paused'
            WHEN slot < clock_timestamp() - grace THEN 'grace'
            WHEN misfire = 'skip' THEN 'policy'
            WHEN misfire = 'latest' AND place > 1 THEN 'superseded'
            WHEN misfire = 'all' AND place > cap THEN 'capped' END AS reason
        FROM waiting JOIN policy USING (job)
        WHERE slot < clock_timestamp() - CAST(:tolerance AS interval)
    )
    UPDATE rota_runs AS run SET
        state = CASE verdict.reason WHEN 'paused' THEN 'skipped' ELSE 'missed' END,
        reason = verdict.reason, finished_at = clock_timestamp()
    FROM verdict WHERE run.id = verdict.id AND verdict.reason IS NOT NULL AND run.state = 'queued'
    RETURNING run.job, run.reason
""")


@dataclass(frozen=True, slots=True)
class Watermark:
    """Up to when the slots of a job are accounted for, under the schedule that was then in force."""

    spec: str
    accounted_until: datetime


def insert(
    connection: Connection, job: Job, rows: Sequence[SlotRow], *, carried: bool, scopes: Collection[str] = ()
) -> list[int]:
    """Record ``rows`` of one job; return the ids of the newly queued. See ``insert_many``."""
    batches = insert_many(connection, [(job, row) for row in rows], carried=carried, scopes={job.name: scopes})
    return [each.run_id for outgoing in batches for each in outgoing]


def insert_many(
    connection: Connection,
    due: Iterable[tuple[Job, SlotRow]],
    *,
    carried: bool,
    scopes: Mapping[str, Collection[str]] = NO_SCOPES,
) -> Iterator[list[OutgoingRun]]:
    """Record slots of any jobs, leaving alone what another process has recorded; yield the newly queued.

    ``carried``: the caller sends their messages. ``scopes`` are those of the pauses that hold each job. Batch by batch,
    so that the first are on their way while the last are recorded; and in the same order whoever inserts them, so that
    two who do cannot wait for each other.
    """
    in_order = sorted(due, key=lambda pair: (pair[1].slot, pair[0].name))
    for start in range(0, len(in_order), BATCH):
        yield _insert_batch(connection, in_order[start : start + BATCH], carried, scopes)


def _insert_batch(
    connection: Connection, due: Sequence[tuple[Job, SlotRow]], carried: bool, scopes: Mapping[str, Collection[str]]
) -> list[OutgoingRun]:
    parameters = {
        "carried": carried,
        "scopes": [pauses.literal(scopes.get(job.name, ())) for job, _ in due],
        "jobs": [job.name for job, _ in due],
        "queues": [job.queue for job, _ in due],
        "exclusives": [job.exclusive for job, _ in due],
        "slots": [row.slot for _, row in due],
        "states": [str(row.state) for _, row in due],
        "reasons": [row.reason for _, row in due],
    }
    inserted = connection.execute(INSERT, parameters).all()
    return [OutgoingRun(row.id, row.job, row.queue) for row in inserted if row.state == State.QUEUED]


def watermarks(connection: Connection) -> dict[str, Watermark]:
    """The watermark of each job that has had one."""
    rows = connection.execute(WATERMARKS).all()
    return {row.job: Watermark(row.spec, row.accounted_until) for row in rows}


def account(connection: Connection, marks: dict[str, Watermark]) -> None:
    """Write down up to when the slots of these jobs are accounted for."""
    if not marks:
        return
    parameters = {
        "jobs": list(marks),
        "specs": [mark.spec for mark in marks.values()],
        "instants": [mark.accounted_until for mark in marks.values()],
    }
    connection.execute(ACCOUNT, parameters)


def miss(
    connection: Connection, jobs: Iterable[Job], tolerance_seconds: float, held: Mapping[str, datetime] = NONE_HELD
) -> list[tuple[str, str]]:
    """Apply the misfire policies to slots that wait unstarted for longer than the tolerance.

    ``held`` says since when jobs are held by a pause. Returns the job and the reason of each slot that is over now.
    """
    tolerance = f"{tolerance_seconds} seconds"
    late = set(connection.execute(LATE_JOBS, {"tolerance": tolerance}).scalars())
    scheduled = [job for job in jobs if job.name in late] if late else []
    if not scheduled:
        return []
    parameters = {
        "jobs": [job.name for job in scheduled],
        "misfires": [job.misfire for job in scheduled],
        "graces": [job.misfire_grace for job in scheduled],
        "caps": [job.misfire_cap for job in scheduled],
        "held_since": [held.get(job.name) for job in scheduled],
        "tolerance": tolerance,
    }
    return [(row.job, row.reason) for row in connection.execute(MISS, parameters)]
