"""Slots: one row for each due time of a schedule, and the time up to which each job's slots are accounted for."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from core.jobs.job import Job
from core.ledger import limit_names, pauses
from core.ledger.carrier import OutgoingRun
from core.ledger.models import State

#: A slot that has not started this long after its time is late. The job's misfire policy then decides about it.
TOLERANCE = timedelta(seconds=30)
#: The default of ``held``: no job is paused.
NONE_HELD: Mapping[str, datetime] = {}
#: The default of ``scopes``: no job has scopes.
NO_SCOPES: Mapping[str, Collection[str]] = {}


@dataclass(frozen=True, slots=True)
class SlotRow:
    """A slot to record: queued, or missed with a reason. A slot that came due in a pause is recorded as skipped."""

    slot: datetime
    state: State = State.QUEUED
    reason: str | None = None


#: The most rows that one statement inserts.
BATCH = 1000

INSERT = text("""
    INSERT INTO rota_runs (job, queue, exclusive, priority, slot, due_at, state, reason, sent_at, finished_at, limits,
                           limits_declared)
    SELECT job, queue, exclusive, priority, slot, slot, CASE WHEN paused THEN 'skipped' ELSE state END,
           CASE WHEN paused THEN 'paused' ELSE reason END,
           CASE WHEN state = 'queued' AND NOT paused AND :carried THEN clock_timestamp() END,
           CASE WHEN state = 'missed' OR paused THEN clock_timestamp() END,
           CAST(limits AS text[]), CAST(limits_declared AS text[])
    FROM unnest(CAST(:jobs AS text[]), CAST(:queues AS text[]), CAST(:exclusives AS boolean[]),
                CAST(:slots AS timestamptz[]), CAST(:states AS text[]), CAST(:reasons AS text[]),
                CAST(:scopes AS text[]), CAST(:priorities AS smallint[]), CAST(:limits AS text[]),
                CAST(:limits_declared AS text[]))
             AS due (job, queue, exclusive, slot, state, reason, scopes, priority, limits, limits_declared),
         LATERAL (SELECT EXISTS (
             SELECT 1 FROM rota_pauses AS pause
             WHERE pause.until > due.slot AND pause.paused_at <= due.slot
               AND pause.scope = ANY(CAST(due.scopes AS text[]))) AS paused) AS judged
    ON CONFLICT (job, key, slot) WHERE slot IS NOT NULL DO NOTHING
    RETURNING id, job, queue, state, priority
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

#: Records late queued slots as missed: by each job's policy, and at the end of their grace. For a paused job, slots
#: that were within their grace when the pause began are recorded as skipped. A slot that a worker has tried to start
#: waits for another run, for a limit, for another release, or because its function has postponed it. Such a slot is
#: missed only at the end of its grace, with the reason for its wait.
MISS = text("""
    WITH policy AS (
        SELECT * FROM unnest(CAST(:jobs AS text[]), CAST(:misfires AS text[]), CAST(:graces AS interval[]),
                             CAST(:caps AS int[]), CAST(:held_since AS timestamptz[]))
            AS policy (job, misfire, grace, cap, held_since)
    ), waiting AS (
        SELECT id, job, slot, row_number() OVER (PARTITION BY job, key ORDER BY slot DESC) AS place,
               CASE WHEN reason IN ('overlap', 'limit', 'later', 'arguments') THEN reason END AS tried
        FROM rota_runs WHERE state = 'queued' AND slot IS NOT NULL AND slot <= clock_timestamp()
    ), verdict AS (
        SELECT id, CASE
            WHEN held_since < slot + grace THEN 'paused'
            WHEN slot < clock_timestamp() - grace THEN coalesce(tried, 'grace')
            WHEN tried IS NOT NULL THEN NULL
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
    """The time up to which a job's slots are accounted for, and the schedule at that time."""

    spec: str
    accounted_until: datetime


def insert(
    connection: Connection, job: Job, rows: Sequence[SlotRow], *, carried: bool, scopes: Collection[str] = ()
) -> list[int]:
    """Record ``rows`` of one job. Return the ids of newly queued runs. See ``insert_many``."""
    batches = insert_many(connection, [(job, row) for row in rows], carried=carried, scopes={job.name: scopes})
    return [each.run_id for outgoing in batches for each in outgoing]


def insert_many(
    connection: Connection,
    due: Iterable[tuple[Job, SlotRow]],
    *,
    carried: bool,
    scopes: Mapping[str, Collection[str]] = NO_SCOPES,
) -> Iterator[list[OutgoingRun]]:
    """Record slots of any jobs that no other process has recorded. Yield the newly queued runs.

    ``carried`` is whether the caller sends the messages of the runs. ``scopes`` has the scopes of the pauses that would
    pause each job. The slots are inserted in batches, so that the first runs are sent while later slots are recorded.
    The order is fixed, so that two processes that insert the same slots cannot deadlock.
    """
    in_order = sorted(due, key=lambda pair: (pair[1].slot, pair[0].name))
    for start in range(0, len(in_order), BATCH):
        yield _insert_batch(connection, in_order[start : start + BATCH], carried, scopes)


def _insert_batch(
    connection: Connection, due: Sequence[tuple[Job, SlotRow]], carried: bool, scopes: Mapping[str, Collection[str]]
) -> list[OutgoingRun]:
    limited = [limit_names.of_slot(job) for job, _ in due]
    parameters = {
        "carried": carried,
        "scopes": [pauses.literal(scopes.get(job.name, ())) for job, _ in due],
        "jobs": [job.name for job, _ in due],
        "queues": [job.queue for job, _ in due],
        "exclusives": [job.exclusive for job, _ in due],
        "priorities": [job.priority for job, _ in due],
        "slots": [row.slot for _, row in due],
        "states": [str(row.state) for _, row in due],
        "reasons": [row.reason for _, row in due],
        "limits": [filled for filled, _ in limited],
        "limits_declared": [declared for _, declared in limited],
    }
    inserted = connection.execute(INSERT, parameters).all()
    return [OutgoingRun(row.id, row.job, row.queue, row.priority) for row in inserted if row.state == State.QUEUED]


def watermarks(connection: Connection) -> dict[str, Watermark]:
    """Return the watermarks, by job."""
    rows = connection.execute(WATERMARKS).all()
    return {row.job: Watermark(row.spec, row.accounted_until) for row in rows}


def account(connection: Connection, marks: dict[str, Watermark]) -> None:
    """Store the time up to which the slots of these jobs are accounted for."""
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
    """Apply the misfire policies to queued slots that are later than the tolerance.

    ``held`` has the time since which each paused job is paused. Returns the job and reason of each slot that this
    function ends.
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
