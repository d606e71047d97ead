"""Claims: one statement sets a run to ``running``, draws its fencing token and records the claiming process.

Two runs of one (job, key) that may not overlap cannot both be ``running``: a claim that sees the other run gives way. A
slot of a job with ``overlap="skip"`` is then skipped. Any other run waits for its turn (``core/ledger/turns.py``). If
two claims race and neither sees the other, the partial unique index ``rota_runs_lease`` refuses the second claim, which
then tries again.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from core.ledger import pauses
from core.ledger.leases import LEASE_IS_GOOD, Lease
from core.ledger.limits import CALLED, FILL, LOCK, ROOM, STANDING, give_back
from core.ledger.models import IS_WAITING, MAY_START
from core.ledger.prepared import Prepared
from core.ledger.releases import MAY_FIT

#: A claim is tried at most this many times. If the index refuses a claim because of another claim that it could not
#: see, the next try sees that other claim.
CLAIM_LOOKS = 3
#: A number of crashes that no run reaches. With this number, no run is a suspect. A process that executes only one run
#: uses it.
NEVER_SUSPECT = 2**31 - 1
#: A function of a run's arguments, which are JSON values. It returns the names of the run's limits twice: filled, and
#: as the job declares them.
LimitsOf = Callable[[Mapping[str, Any]], tuple[list[str], list[str]]]
NO_FORMS: Mapping[str, str] = MappingProxyType({})


class Verdict(StrEnum):
    """The outcome of a claim."""

    RUNNING = "running"
    #: The run is a slot of a job with ``overlap="skip"``, and another run of the same job and key is running. The slot
    #: is skipped.
    SKIPPED = "skipped"
    #: The run is a slot of a job with ``overlap="skip"``, and an earlier slot of the same job and key is being retried.
    #: The slot is skipped.
    BEHIND = "behind"
    #: Another run of the same job and key is running or comes first. This run is parked until the other run has ended.
    WAITING = "waiting"
    #: One of the run's limits is full. The run is parked until the limit has room.
    LIMITED = "limited"
    #: The run's job is paused, and the run has a slot: the slot is skipped.
    PAUSED = "paused"
    #: The run's job is paused. The dispatcher sends the run when the pause ends.
    HELD = "held"
    #: Too many processes died while working on the run. Only a process that executes no other run may claim it.
    SUSPECT = "suspect"
    #: The run is not due yet. The dispatcher sends it when it is due.
    EARLY = "early"
    #: The run's arguments do not fit the job as this process declares it, and a live worker may declare the job
    #: differently. The dispatcher sends the run again after a short wait.
    MISFIT = "misfit"
    #: Another transaction has locked the run. For example, a request has found the run waiting, and the run must start
    #: after the request's commit (``core/ledger/waiting.py``). The run is sent again soon.
    LOCKED = "locked"
    #: The run is over or has expired, or another process has it, or this process is not registered.
    NONE = "none"


#: A run whose arguments do not fit is sent again after this wait, like a message for an unknown actor. A run that may
#: not overlap keeps its due time, and so its place in its key: it is parked until the dispatcher's next pass.
MISFIT_REST = "interval '0.5 seconds'"
RESTED_AT = f"CASE WHEN run.exclusive THEN run.due_at ELSE clock_timestamp() + {MISFIT_REST} END"

#: For a run that may not overlap, these queries find another run of its job and key: ``RIVAL`` a run that is running,
#: and ``FORMER`` a run that is due earlier.
RIVAL = """
    SELECT 1 FROM rota_runs AS rival WHERE rival.job = candidate.job AND rival.key = candidate.key
      AND rival.state = 'running' AND rival.exclusive
"""
FORMER = """
    SELECT 1 FROM rota_runs AS former WHERE former.job = candidate.job AND former.key = candidate.key
      AND former.state IN ('queued', 'retrying') AND (former.exclusive OR former.key <> '') AND former.exclusive
      AND (former.due_at, former.id) < (candidate.due_at, candidate.id)
"""
#: Finds an earlier slot that is being retried, even if the retry is not due yet. ``+ interval '0'`` keeps PostgreSQL
#: from using an index that has all slots of the history.
RETRIED = """
    SELECT 1 FROM rota_runs AS tried WHERE tried.job = candidate.job AND tried.key = candidate.key
      AND tried.state IN ('queued', 'retrying') AND (tried.exclusive OR tried.key <> '') AND tried.exclusive
      AND tried.state = 'retrying' AND tried.slot + interval '0' < candidate.slot
"""

#: The condition is false, and not null, for a run that no form has refused. After a null, PostgreSQL would still
#: evaluate the other side of AND, which reads all releases.
REFUSED_HERE = "refused_by IS NOT NULL AND $7 = ANY(refused_by)"

#: The columns that a claim returns.
CLAIMED = """
    word, run.id, token, process_id, job, key, slot, attempt, failures, args, clock_timestamp() AS claimed_at, due_at
"""

#: The part of a claim that only runs with limits need. ``crowded`` is the run's first limit that has no room. Room that
#: is kept for a woken run counts as free only for that run.
LIMITS = f"""
    asked AS MATERIALIZED (
        SELECT name, array_agg(declared) AS declared, min(place) AS place
        FROM candidate, unnest(limits, limits_declared) WITH ORDINALITY AS own (name, declared, place) GROUP BY name
    ), {STANDING}, crowded AS MATERIALIZED (
        SELECT standing.name FROM standing, candidate
        WHERE {ROOM} - CASE WHEN waits_for = standing.name AND sent_at < 'infinity' THEN 0 ELSE {CALLED} END < 1
        ORDER BY standing.place LIMIT 1
    ),
"""  # noqa: S608 — constants
HELD = """
    held AS (
        INSERT INTO rota_limits (name, declared, holders, tokens, used_at, full_at)
        SELECT name, declared[1], holders || id, tokens - 1, now,
               now + make_interval(secs => (most - tokens + 1) / per_second)
        FROM standing, verdict WHERE word = 'running'
        ON CONFLICT (name) DO UPDATE SET
            declared = excluded.declared, holders = excluded.holders, tokens = excluded.tokens,
            used_at = excluded.used_at, full_at = excluded.full_at
    ),
"""


def claiming(*, limited: bool) -> str:
    """Return the statement that claims a run: a run that has limits, or a run that has none."""
    parts = LIMITS if limited else ""
    free = "CASE WHEN EXISTS (SELECT 1 FROM crowded) THEN 'limited' ELSE 'running' END" if limited else "'running'"
    token = "drawn, limits_token = drawn, waits_for = NULL" if limited else "nextval('rota_tokens')"
    waits_for = "waits_for = CASE word WHEN 'limited' THEN (SELECT name FROM crowded) END," if limited else ""
    claimed = f"{CLAIMED}, limits" if limited else CLAIMED
    return f"""
    WITH unflushed AS MATERIALIZED (
        SELECT set_config('synchronous_commit', 'off', true)
    ), candidate AS MATERIALIZED (
        SELECT id, job, key, slot, state, exclusive, crashes, due_at, due_at <= clock_timestamp() AS due, queue,
               refused_by{", limits, limits_declared, waits_for, sent_at" if limited else ""}
        FROM rota_runs, unflushed
        WHERE id = $1 AND job = $2 AND state IN ('queued', 'retrying') AND limits IS {"NOT " if limited else ""}NULL
          AND {MAY_START} AND EXISTS (
            SELECT 1 FROM rota_processes AS process WHERE process.id = $3 AND process.expires_at > clock_timestamp())
        FOR UPDATE OF rota_runs SKIP LOCKED
    ), {parts} verdict AS MATERIALIZED (
        SELECT id, {"nextval('rota_tokens') AS drawn," if limited else ""} CASE
            WHEN NOT due THEN 'early'
            WHEN EXISTS (SELECT 1 FROM rota_pauses WHERE {pauses.IS_ACTIVE} AND scope = ANY($6))
                THEN CASE WHEN state = 'queued' AND slot IS NOT NULL THEN 'paused' ELSE 'held' END
            WHEN {REFUSED_HERE} AND {MAY_FIT.format(job="job", queue="queue", refused="refused_by")} THEN 'misfit'
            WHEN crashes >= $5 THEN 'suspect'
            WHEN NOT exclusive THEN {free}
            WHEN $8 AND state = 'queued' AND slot IS NOT NULL AND EXISTS ({RETRIED}) THEN 'behind'
            WHEN EXISTS ({RIVAL}) THEN CASE WHEN $8 AND state = 'queued' AND slot IS NOT NULL THEN 'skipped'
                                            ELSE 'waiting' END
            WHEN EXISTS ({FORMER}) THEN 'waiting'
            ELSE {free} END AS word
        FROM candidate
    ), {HELD if limited else ""} started AS (
        UPDATE rota_runs AS run SET
            state = 'running', reason = NULL, attempt = attempt + 1, token = {token}, process_id = $3,
            worker = $4, started_at = clock_timestamp(), finished_at = NULL
        FROM verdict WHERE run.id = verdict.id AND word = 'running'
        RETURNING {claimed}
    ), refused AS (
        UPDATE rota_runs AS run SET
            state = CASE WHEN word IN ('skipped', 'behind', 'paused') THEN 'skipped' ELSE state END,
            reason = CASE word WHEN 'skipped' THEN 'overlap' WHEN 'waiting' THEN 'overlap' WHEN 'behind' THEN 'retrying'
                               WHEN 'limited' THEN 'limit'
                               WHEN 'paused' THEN word WHEN 'misfit' THEN 'arguments' ELSE reason END,
            process_id = NULL, {waits_for}
            finished_at = CASE WHEN word IN ('skipped', 'behind', 'paused') THEN clock_timestamp() END,
            sent_at = CASE WHEN word IN ('waiting', 'limited') OR word = 'misfit' AND exclusive THEN 'infinity'
                           WHEN word NOT IN ('early', 'held', 'misfit') THEN sent_at END,
            due_at = CASE word WHEN 'misfit' THEN {RESTED_AT} ELSE due_at END
        FROM verdict WHERE run.id = verdict.id AND word <> 'running'
        RETURNING {claimed}
    )
    SELECT * FROM started UNION ALL SELECT * FROM refused
    """  # noqa: S608 — constants


#: Parameters: the run, its job, the process, the name of the process, the number of crashes that makes a run a suspect,
#: the job's scopes, the job's form in this process, and whether a slot of the job is skipped while another run is
#: active.
PARAMETERS = ("bigint", "text", "bigint", "text", "int", "text[]", "text", "boolean")

#: Claims a run without limits. The claim itself is not flushed to disk. If PostgreSQL crashes before the next flush,
#: the run is queued again, and the lost lease matches no row. The sequence may draw the same token again, but for
#: another process: every process registers again after a crash, and a registration is flushed. The commit of the run's
#: work flushes the run's claim as well.
CLAIM = Prepared("rota_claim", PARAMETERS, claiming(limited=False))

#: Claims a run with limits, whose locks were taken by ``limits.LOCK`` in the same transaction.
CLAIM_LIMITED = Prepared("rota_claim_limited", PARAMETERS, claiming(limited=True))

#: Parameters: the run, its job, the process. Explains a claim that returned no row. If this query finds the run, then
#: the claim found the run locked, or the claim used the wrong one of CLAIM and CLAIM_LIMITED. Returns whether the run
#: has limits, and its arguments.
IS_CLAIMABLE = Prepared(
    "rota_is_claimable",
    ("bigint", "text", "bigint"),
    f"""
    SELECT limits IS NOT NULL, args FROM rota_runs
    WHERE id = $1 AND job = $2 AND {IS_WAITING} AND {MAY_START} AND EXISTS (
        SELECT 1 FROM rota_processes AS process WHERE process.id = $3 AND process.expires_at > clock_timestamp())
    """,  # noqa: S608 — constants
)

#: Parameters: the runs, their jobs, the process, the name of the process, the scopes of each job as the text of an
#: array, and the form of each job in this process. The statement does the same as CLAIM for many runs. It leaves some
#: runs to CLAIM: a run that must wait for another run or give way to it, a run that has limits, is early or paused, was
#: refused by this form, or has a crash, and a run that another transaction has locked. It also leaves out a retry
#: without an attempt, since an unclaim could not restore its state. The runs are locked in the order of their keys, so
#: that two claims which start different runs of the same keys do not wait for each other.
CLAIM_MANY = Prepared(
    "rota_claim_many",
    ("bigint[]", "text[]", "bigint", "text", "text[]", "text[]"),
    f"""
    WITH unflushed AS MATERIALIZED (
        SELECT set_config('synchronous_commit', 'off', true)
    ), fit AS MATERIALIZED (
        SELECT candidate.id
        FROM unflushed, unnest($1, $2, $5, $6) AS sent (id, job, scopes, form)
        JOIN rota_runs AS candidate ON candidate.id = sent.id AND candidate.job = sent.job
        WHERE (state = 'queued' OR state = 'retrying' AND attempt > 0)
          AND limits IS NULL AND crashes = 0 AND due_at <= clock_timestamp() AND {MAY_START}
          AND (refused_by IS NULL OR sent.form <> ALL(refused_by))
          AND NOT EXISTS (SELECT 1 FROM rota_pauses WHERE {pauses.IS_ACTIVE} AND scope = ANY(sent.scopes::text[]))
          AND EXISTS (
            SELECT 1 FROM rota_processes AS process WHERE process.id = $3 AND process.expires_at > clock_timestamp())
          AND (NOT exclusive OR NOT (EXISTS ({RIVAL}) OR EXISTS ({FORMER}) OR EXISTS ({RETRIED})))
        ORDER BY candidate.key, candidate.id
        FOR UPDATE OF candidate SKIP LOCKED
    )
    UPDATE rota_runs AS run SET
        state = 'running', reason = NULL, attempt = attempt + 1, token = nextval('rota_tokens'),
        process_id = $3, worker = $4, started_at = clock_timestamp()
    FROM fit WHERE run.id = fit.id
    RETURNING run.id, token, process_id, job, key, slot, attempt, failures, args, clock_timestamp(), due_at
    """,  # noqa: S608 — constants
)

#: Parameters: the runs, their tokens, their processes. The statement undoes the claims of runs that were not started.
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


#: Parameters: the run, its token, the process, the form of the job in this process. The statement undoes the claim, and
#: delays or parks the run.
REFUSE = Prepared(
    "rota_refuse",
    ("bigint", "bigint", "bigint", "text"),
    f"""
    UPDATE rota_runs AS run
    SET state = CASE WHEN attempt > 1 THEN 'retrying' ELSE 'queued' END, reason = 'arguments', attempt = attempt - 1,
        refused_by = array_append(refused_by, $4), token = NULL, process_id = NULL, worker = NULL, started_at = NULL,
        sent_at = CASE WHEN exclusive THEN 'infinity'::timestamptz END, due_at = {RESTED_AT}
    WHERE {LEASE_IS_GOOD} AND {MAY_FIT.format(job="run.job", queue="run.queue", refused="run.refused_by || $4")}
    RETURNING run.id
    """,  # noqa: S608 — constants
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
    form: str = "",
    gives_way: bool = True,
    limits: LimitsOf | None = None,
) -> tuple[Verdict, Lease | None]:
    """Claim ``run_id`` for this process, if it is a run of ``job``, in one round trip on an autocommit connection.

    ``scopes`` are the scopes of the pauses that would pause the job. ``form`` is the job's form in this process
    (``core/jobs/arguments.py``). ``gives_way`` is whether the job has ``overlap="skip"``. ``limits`` returns the limits
    of a run of the job for the run's arguments; None for a job without limits. The result is the verdict, with a lease
    if and only if the verdict is RUNNING. The claim does not wait for a lock on the run.
    """
    values = (run_id, job, process_id, worker, most_crashes, pauses.literal(scopes), form, gives_way)
    is_limited = limits is not None
    for look in range(CLAIM_LOOKS):
        try:
            if is_limited:
                rows = CLAIM_LIMITED.rows_after(LOCK, connection, (run_id,), *values)
            else:
                rows = CLAIM.rows(connection, *values)
        except IntegrityError:
            if look == CLAIM_LOOKS - 1:
                raise
            continue
        if rows:
            word, *columns = rows[0]
            return Verdict(word), Lease(*columns) if word == Verdict.RUNNING else None
        found = IS_CLAIMABLE.rows(connection, run_id, job, process_id)
        if not found:
            return Verdict.NONE, None
        ((has_limits, args),) = found
        if limits is not None and not has_limits:
            FILL.rows(connection, run_id, *limits(args))
        is_limited = limits is not None or has_limits
    return Verdict.LOCKED, None


def claim_many(
    connection: Connection,
    sent: Sequence[tuple[int, str, Collection[str]]],
    *,
    process_id: int,
    worker: str,
    forms: Mapping[str, str] = NO_FORMS,
) -> list[Lease]:
    """Claim those of the ``sent`` runs that CLAIM_MANY can claim. Do not change the other runs.

    ``sent`` has each run with its job and the scopes of the pauses that would pause the job. ``forms`` has each job's
    form.

    The function is for runs that the threads of a process start at once. If the process dies, each of these runs counts
    a crash. This happens to a run only once, since a run with a crash is claimed separately.

    If another process claims a run of the same job and key at this moment, the index refuses the whole statement. Then
    each half of the runs is tried alone. If a half is refused too, its runs are not claimed.
    """
    try:
        return _claim_together(connection, sent, process_id, worker, forms)
    except IntegrityError:
        half = len(sent) // 2
    claimed = []
    for part in (sent[:half], sent[half:]):
        with suppress(IntegrityError):
            claimed += _claim_together(connection, part, process_id, worker, forms)
    return claimed


def _claim_together(
    connection: Connection,
    sent: Sequence[tuple[int, str, Collection[str]]],
    process_id: int,
    worker: str,
    forms: Mapping[str, str],
) -> list[Lease]:
    run_ids, jobs = [run_id for run_id, _, _ in sent], [job for _, job, _ in sent]
    scopes = [pauses.literal(own) for _, _, own in sent]
    here = [forms.get(job, "") for job in jobs]
    return [Lease(*row) for row in CLAIM_MANY.rows(connection, run_ids, jobs, process_id, worker, scopes, here)]


def unclaim_many(connection: Connection, claimed: Sequence[Lease]) -> None:
    """Release runs that were not started, and undo their claims."""
    run_ids, tokens = [lease.run_id for lease in claimed], [lease.token for lease in claimed]
    UNCLAIM_MANY.rows(connection, run_ids, tokens, [lease.process_id for lease in claimed])


def refuse(connection: Connection, lease: Lease, form: str) -> bool:
    """Release a run, uncounted, if another live worker may have the job in a form that has not refused the run.

    ``form`` is the job's form in this process. If no live worker may have such a form, or if the lease is lost, return
    False and change nothing.
    """
    is_released = bool(REFUSE.rows(connection, lease.run_id, lease.token, lease.process_id, form))
    if is_released:
        give_back(connection, lease)
    return is_released
