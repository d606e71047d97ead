"""Claims: one statement takes a run to ``running``, draws its fencing token and names the claiming process.

Two runs of one (job, key) cannot both be ``running``: a claim sees the rival and steps back. When two claims race past
each other's sight, the partial unique index ``rota_runs_lease`` stops the second, which then looks again.
"""

from collections.abc import Collection, Sequence
from enum import StrEnum

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from core.ledger import pauses
from core.ledger.leases import Lease
from core.ledger.prepared import Prepared

#: A claim that loses to a rival it could not see looks again; the rival is then visible.
CLAIM_LOOKS = 3
#: More crashes than any run survives: the claim of a process that runs nothing else.
NEVER_SUSPECT = 2**31 - 1


class Verdict(StrEnum):
    """What became of a claim."""

    RUNNING = "running"
    #: Another run of the same job and key is at work, and this one had not begun.
    SKIPPED = "skipped"
    #: The same, but this run is being retried: it waits for the other.
    WAITING = "waiting"
    #: Its job is paused, and this was its slot: it is over, skipped.
    PAUSED = "paused"
    #: Its job is paused; the dispatcher will send it when it no longer is.
    HELD = "held"
    #: Too many of its processes died; it may only be claimed by a process that runs nothing else.
    SUSPECT = "suspect"
    #: Its time has not come; the dispatcher will send it when it has.
    EARLY = "early"
    #: It is over, someone else has it, or this process has no lease to give.
    NONE = "none"


#: Run, job, process, name of the process, how many crashes make the run a suspect, the scopes of the job.
#: Not flushed to disk by itself: should PostgreSQL crash before the next flush, the run is queued again, and the lost
#: claim fits nothing. Its token may be drawn again, since the sequence has forgotten it too, but for another process:
#: all register anew after a crash, and that is flushed. The commit of its work would have flushed the claim as well.
CLAIM = Prepared(
    "rota_claim",
    ("bigint", "text", "bigint", "text", "int", "text[]"),
    f"""
    WITH unflushed AS MATERIALIZED (
        SELECT set_config('synchronous_commit', 'off', true)
    ), candidate AS MATERIALIZED (
        SELECT id, job, key, slot, state, exclusive, crashes, due_at <= clock_timestamp() AS due
        FROM rota_runs, unflushed
        WHERE id = $1 AND job = $2 AND state IN ('queued', 'retrying') AND EXISTS (
            SELECT 1 FROM rota_processes AS process WHERE process.id = $3 AND process.expires_at > clock_timestamp())
        FOR UPDATE OF rota_runs
    ), verdict AS MATERIALIZED (
        SELECT id, CASE
            WHEN NOT due THEN 'early'
            WHEN EXISTS (SELECT 1 FROM rota_pauses WHERE {pauses.IS_ACTIVE} AND scope = ANY($6))
                THEN CASE WHEN state = 'queued' AND slot IS NOT NULL THEN 'paused' ELSE 'held' END
            WHEN crashes >= $5 THEN 'suspect'
            WHEN NOT exclusive OR NOT EXISTS (
                SELECT 1 FROM rota_runs AS rival
                WHERE rival.job = candidate.job AND rival.key = candidate.key
                  AND rival.state = 'running' AND rival.exclusive) THEN 'running'
            WHEN state = 'queued' THEN 'skipped'
            ELSE 'waiting' END AS word
        FROM candidate
    )
    UPDATE rota_runs AS run SET
        state = CASE word WHEN 'running' THEN word WHEN 'skipped' THEN word WHEN 'paused' THEN 'skipped' ELSE state END,
        reason = CASE WHEN word = 'running' THEN NULL WHEN word IN ('skipped', 'waiting') THEN 'overlap'
                      WHEN word = 'paused' THEN word ELSE reason END,
        attempt = attempt + (word = 'running')::int,
        token = CASE word WHEN 'running' THEN nextval('rota_tokens') ELSE token END,
        process_id = CASE word WHEN 'running' THEN $3 END,
        worker = CASE word WHEN 'running' THEN $4 ELSE worker END,
        started_at = CASE word WHEN 'running' THEN clock_timestamp() ELSE started_at END,
        finished_at = CASE WHEN word IN ('skipped', 'paused') THEN clock_timestamp() END,
        sent_at = CASE WHEN word NOT IN ('early', 'waiting', 'held') THEN sent_at END,
        due_at = CASE word WHEN 'waiting' THEN clock_timestamp() + interval '1 second' ELSE due_at END
    FROM verdict WHERE run.id = verdict.id
    RETURNING word, run.id, token, process_id, job, key, slot, attempt, failures, args, clock_timestamp(), due_at
    """,  # noqa: S608 — a constant
)

#: Runs, their jobs, process, name of the process, the scopes of each job as the text of an array: as CLAIM, for many at
#: once. What takes a closer look is left to that: a run that may not overlap, is early or paused, or under which a
#: process has died; one that is to be retried without ever having been begun (what it was could not be told if it is
#: given up); and a row that someone else has locked.
CLAIM_MANY = Prepared(
    "rota_claim_many",
    ("bigint[]", "text[]", "bigint", "text", "text[]"),
    f"""
    WITH unflushed AS MATERIALIZED (
        SELECT set_config('synchronous_commit', 'off', true)
    ), candidate AS MATERIALIZED (
        SELECT run.id
        FROM unflushed, unnest($1, $2, $5) AS sent (id, job, scopes)
        JOIN rota_runs AS run ON run.id = sent.id AND run.job = sent.job
        WHERE (state = 'queued' OR state = 'retrying' AND attempt > 0)
          AND NOT exclusive AND crashes = 0 AND due_at <= clock_timestamp()
          AND NOT EXISTS (SELECT 1 FROM rota_pauses WHERE {pauses.IS_ACTIVE} AND scope = ANY(sent.scopes::text[]))
          AND EXISTS (
            SELECT 1 FROM rota_processes AS process WHERE process.id = $3 AND process.expires_at > clock_timestamp())
        FOR UPDATE OF run SKIP LOCKED
    )
    UPDATE rota_runs AS run SET
        state = 'running', reason = NULL, attempt = attempt + 1, token = nextval('rota_tokens'),
        process_id = $3, worker = $4, started_at = clock_timestamp()
    FROM candidate WHERE run.id = candidate.id
    RETURNING run.id, token, process_id, job, key, slot, attempt, failures, args, clock_timestamp(), due_at
    """,  # noqa: S608 — a constant
)

#: Runs, their tokens, their processes. What was claimed and not begun is as if it had not been claimed.
UNCLAIM_MANY = Prepared(
    "rota_unclaim_many",
    ("bigint[]", "bigint[]", "bigint[]"),
    """
    UPDATE rota_runs AS run
    SET state = CASE WHEN attempt > 1 THEN 'retrying' ELSE 'queued' END, attempt = attempt - 1, token = NULL,
        process_id = NULL, worker = NULL, started_at = NULL
    FROM unnest($1, $2, $3) AS claimed (id, token, process_id)
    WHERE run.id = claimed.id AND run.token = claimed.token AND run.process_id = claimed.process_id
      AND run.state = 'running'
    RETURNING run.id
    """,
)


def claim(
    connection: Connection,
    run_id: int,
    *,
    job: str,
    process_id: int,
    worker: str,
    most_crashes: int = NEVER_SUSPECT,
    scopes: Collection[str] = (),
) -> tuple[Verdict, Lease | None]:
    """Take ``run_id``, if it is one of ``job``'s, for this process, in one round trip on an autocommit connection.

    ``scopes`` are those of the pauses that hold the job.
    Returns the verdict, with a lease if and only if it is RUNNING.
    """
    for look in range(CLAIM_LOOKS):
        try:
            rows = CLAIM.rows(connection, run_id, job, process_id, worker, most_crashes, pauses.literal(scopes))
        except IntegrityError:
            if look == CLAIM_LOOKS - 1:
                raise
            continue
        if not rows:
            return Verdict.NONE, None
        word, *columns = rows[0]
        return Verdict(word), Lease(*columns) if word == Verdict.RUNNING else None
    raise AssertionError("unreachable")


def claim_many(
    connection: Connection, sent: Sequence[tuple[int, str, Collection[str]]], *, process_id: int, worker: str
) -> list[Lease]:
    """Take those of the runs ``sent`` that nothing speaks against; the others are left as they are.

    Each comes with its job and the scopes of the pauses that would hold it.

    A process claims so what its threads are about to begin with. If it dies just then, being one of these counts
    against a run at most once: what has been counted against once is claimed alone.
    """
    run_ids, jobs = [run_id for run_id, _, _ in sent], [job for _, job, _ in sent]
    scopes = [pauses.literal(own) for _, _, own in sent]
    return [Lease(*row) for row in CLAIM_MANY.rows(connection, run_ids, jobs, process_id, worker, scopes)]


def unclaim_many(connection: Connection, claimed: Sequence[Lease]) -> None:
    """Give up leases on runs that were not begun, as if they had not been claimed."""
    run_ids, tokens = [lease.run_id for lease in claimed], [lease.token for lease in claimed]
    UNCLAIM_MANY.rows(connection, run_ids, tokens, [lease.process_id for lease in claimed])
