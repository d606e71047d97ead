"""Claims: one statement sets a run to ``running``, draws its fencing token and records the claiming process.

Two runs of one (job, key) cannot both be ``running``: a claim that sees the other run gives way. If two claims race and
neither sees the other, the partial unique index ``rota_runs_lease`` refuses the second claim, which then tries again.
"""

from collections.abc import Collection, Sequence
from enum import StrEnum

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from core.ledger import pauses
from core.ledger.leases import Lease
from core.ledger.prepared import Prepared

#: How often a claim is tried: after losing to a rival that it could not see, it sees the rival at the next try.
CLAIM_LOOKS = 3
#: More crashes than any run can have; used by a process that runs nothing else.
NEVER_SUSPECT = 2**31 - 1


class Verdict(StrEnum):
    """The outcome of a claim."""

    RUNNING = "running"
    #: Another run of the same job and key is running, and this run had not started.
    SKIPPED = "skipped"
    #: The same, but this run is a retry, so it waits for the other run.
    WAITING = "waiting"
    #: Its job is paused, and the run has a slot: it is skipped.
    PAUSED = "paused"
    #: Its job is paused; the dispatcher sends it when the pause ends.
    HELD = "held"
    #: Too many processes died while working on it; only a process that runs nothing else may claim it.
    SUSPECT = "suspect"
    #: It is not due yet; the dispatcher sends it when it is.
    EARLY = "early"
    #: It is over, another process has it, or this process is not registered.
    NONE = "none"


#: Parameters: run, job, process, name of the process, number of crashes from which a run is a suspect, scopes of the
#: job. The claim itself is not flushed to disk. If PostgreSQL crashes before the next flush, the run is queued again,
#: and the lost lease matches no row. The sequence may draw its token again, but for another process: every process
#: registers again after a crash, and a registration is flushed. The commit of the run's work flushes its claim as well.
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

#: Parameters: runs, their jobs, process, name of the process, the scopes of each job as the text of an array.
#: The same as CLAIM for many runs. It leaves these to CLAIM: a run that may not overlap, is early or paused, or has a
#: crash; a retry that was never started (an unclaim could not tell its former state); and a row that is locked.
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

#: Parameters: runs, their tokens, their processes. Undoes the claims of runs that were not started.
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
    """Claim ``run_id``, if it is a run of ``job``, for this process, in one round trip on an autocommit connection.

    ``scopes`` are the scopes of the pauses that would pause the job.
    Returns the verdict, with a lease if and only if the verdict is RUNNING.
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
    """Claim those of the runs ``sent`` that need no closer check; leave the others unchanged.

    ``sent`` has each run with its job and the scopes of the pauses that would pause it.

    A process claims runs this way that its threads start at once. If it dies then, each of these runs counts a crash,
    but at most once: a run with a crash is claimed alone.
    """
    run_ids, jobs = [run_id for run_id, _, _ in sent], [job for _, job, _ in sent]
    scopes = [pauses.literal(own) for _, _, own in sent]
    return [Lease(*row) for row in CLAIM_MANY.rows(connection, run_ids, jobs, process_id, worker, scopes)]


def unclaim_many(connection: Connection, claimed: Sequence[Lease]) -> None:
    """Release runs that were not started, and undo their claims."""
    run_ids, tokens = [lease.run_id for lease in claimed], [lease.token for lease in claimed]
    UNCLAIM_MANY.rows(connection, run_ids, tokens, [lease.process_id for lease in claimed])
