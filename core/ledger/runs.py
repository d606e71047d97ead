"""Changes of a run's state: it is requested, and it succeeds, fails, or is released."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from types import MappingProxyType

from psycopg2.errors import DivisionByZero
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.ledger import attempts
from core.ledger.attempts import ENDED
from core.ledger.leases import LEASE_IS_GOOD, Lease
from core.ledger.limit_names import NO_NAMES, Names
from core.ledger.models import State
from core.ledger.prepared import Prepared, qualified

#: The ledger stores at most this many characters of an error. The log has the whole text.
LONGEST_ERROR = 2000

#: The channel on which the dispatcher is notified of runs requested by a process without Redis.
DUE_CHANNEL = "rota_due"

#: The most rows that one statement inserts.
BATCH = 1000
NO_LOGS: Mapping[int, str | None] = MappingProxyType({})

REQUEST = """
    WITH run AS (
        INSERT INTO ledger.rota_runs (job, key, queue, args, exclusive, due_at, sent_at, parent_id, expires_at,
                                      subject, priority, limits, limits_declared)
        SELECT :job, key, :queue, CAST(args AS jsonb), :exclusive,
               clock_timestamp() + :delay, CASE WHEN :carried THEN clock_timestamp() END, CAST(:parent_id AS bigint),
               coalesce(CAST(:expires_at AS timestamptz), clock_timestamp() + :delay + CAST(:expires_in AS interval)),
               subject, :priority, CAST(limits AS text[]), CAST(:limits_declared AS text[])
        FROM unnest(CAST(:keys AS text[]), CAST(:args AS text[]), CAST(:subjects AS text[]), CAST(:limits AS text[]))
             WITH ORDINALITY AS asked (key, args, subject, limits, number)
        ORDER BY number
        RETURNING id
    )
    SELECT id, CASE WHEN NOT :carried THEN pg_notify(:channel, '') END FROM run ORDER BY id
"""

IS_AHEAD = text("SELECT CAST(:instant AS timestamptz) > clock_timestamp() + :delay")

#: A run is dead after a live process has lost the lease of more attempts than this. Failures, crashes and postponements
#: do not count.
MOST_LOSSES = 20

#: Whether a run waits for the end of ``run``.
HAS_WAITING = """EXISTS (
    SELECT 1 FROM {}rota_runs AS parked WHERE parked.job = run.job AND parked.key = run.key
      AND parked.state IN ('queued', 'retrying') AND parked.sent_at = 'infinity'
      AND parked.waits_for IS NULL)"""
#: Parameters: the run, its token, the process, the result. Returns whether a run waits for the end of this run.
SUCCEED = Prepared(
    "rota_succeed",
    ("bigint", "bigint", "bigint", "text"),
    f"""
    UPDATE ledger.rota_runs AS run
    SET state = 'succeeded', result = $4::jsonb, error = NULL, process_id = NULL, finished_at = clock_timestamp()
    WHERE {LEASE_IS_GOOD} RETURNING CASE WHEN run.exclusive THEN {HAS_WAITING.format("ledger.")} ELSE false END
    """,  # noqa: S608 — constants
)

#: ``SUCCEED`` for a run without a result. It divides by zero if the lease is lost, so that PostgreSQL does not execute
#: the COMMIT that follows in the same round trip.
SUCCEED_OR_FAIL = Prepared(
    "rota_succeed_or_fail",
    ("bigint", "bigint", "bigint"),
    f"""
    WITH succeeded AS (
        UPDATE ledger.rota_runs AS run
        SET state = 'succeeded', result = NULL, error = NULL, process_id = NULL, finished_at = clock_timestamp()
        WHERE {LEASE_IS_GOOD} RETURNING run.id
    )
    SELECT 1 / count(*) FROM succeeded
    """,  # noqa: S608 — constants
)

#: Whether another run waits for the end of a run that has ended. Parameter: the run.
IS_AWAITED = Prepared(
    "rota_is_awaited",
    ("bigint",),
    f"""
    SELECT CASE WHEN run.exclusive THEN {HAS_WAITING.format("ledger.")} ELSE false END
    FROM ledger.rota_runs AS run WHERE run.id = $1
    """,  # noqa: S608 — constants
)

#: The statement ``SUCCEED`` for a run that had an attempt before, with the end of this attempt's log. Only such a
#: success is kept as an attempt.
SUCCEED_AFTER_ANOTHER = Prepared(
    "rota_succeed_after_another",
    ("bigint", "bigint", "bigint", "text", "text"),
    f"""
    WITH ended AS MATERIALIZED (
        UPDATE ledger.rota_runs AS run
        SET state = 'succeeded', result = $4::jsonb, error = NULL, process_id = NULL, finished_at = clock_timestamp()
        WHERE {LEASE_IS_GOOD} RETURNING {ENDED}, run.job, run.key, run.exclusive
    ), {attempts.keeping("ended", "succeeded", log="$5", ledger="ledger.")}
    SELECT CASE WHEN run.exclusive THEN {HAS_WAITING.format("ledger.")} ELSE false END FROM ended AS run
    """,  # noqa: S608 — constants
)

#: Parameters: the process, the runs, their tokens, their results. Returns each run, and whether another run waits for
#: its end.
SUCCEED_MANY = Prepared(
    "rota_succeed_many",
    ("bigint", "bigint[]", "bigint[]", "text[]"),
    f"""
    UPDATE rota_runs AS run
    SET state = 'succeeded', result = done.result::jsonb, error = NULL, process_id = NULL,
        finished_at = clock_timestamp()
    FROM unnest($2, $3, $4) AS done (id, token, result)
    WHERE run.id = done.id AND run.token = done.token AND coalesce(run.state, '') = 'running'
          AND run.process_id = $1
    RETURNING run.id, CASE WHEN run.exclusive THEN {HAS_WAITING.format("")} ELSE false END
    """,  # noqa: S608 — constants
)

#: The statement ``SUCCEED_MANY`` for a batch in which a run had an attempt before. The last parameter is the end of
#: each attempt's log.
SUCCEED_MANY_AFTER_OTHERS = Prepared(
    "rota_succeed_many_after_others",
    ("bigint", "bigint[]", "bigint[]", "text[]", "text[]"),
    f"""
    WITH ended AS MATERIALIZED (
        UPDATE rota_runs AS run
        SET state = 'succeeded', result = done.result::jsonb, error = NULL, process_id = NULL,
            finished_at = clock_timestamp()
        FROM unnest($2, $3, $4, $5) AS done (id, token, result, log)
        WHERE run.id = done.id AND run.token = done.token AND coalesce(run.state, '') = 'running'
          AND run.process_id = $1
        RETURNING {ENDED}, run.job, run.key, run.exclusive, done.log
    ), {attempts.keeping("ended", "succeeded", log="log", among="ended.attempt > 1")}
    SELECT id, CASE WHEN run.exclusive THEN {HAS_WAITING.format("")} ELSE false END FROM ended AS run
    """,  # noqa: S608 — constants
)

#: Parameters: the run, its token, the process, the state, the reason, the error, the delay, the latest due time or
#: null, the traceback, the end of the log.
FAIL = Prepared(
    "rota_fail",
    ("bigint", "bigint", "bigint", "text", "text", "text", "interval", "timestamptz", "text", "text"),
    f"""
    WITH ended AS MATERIALIZED (
        UPDATE rota_runs AS run
        SET state = $4, reason = $5, error = $6, failures = failures + 1, process_id = NULL, sent_at = NULL,
            due_at = CASE WHEN $4 = 'retrying' AND $7 > interval '0' THEN least(clock_timestamp() + $7, $8)
                          ELSE due_at END,
            finished_at = CASE $4 WHEN 'dead' THEN clock_timestamp() END
        WHERE {LEASE_IS_GOOD} RETURNING {ENDED}
    ), {attempts.keeping("ended", "failed", traceback="$9", log="$10")}
    SELECT id FROM ended
    """,  # noqa: S608 — constants
)

ANNOUNCE = text("SELECT pg_notify(:channel, '')")

RELEASE = text(f"""
    WITH ended AS MATERIALIZED (
        UPDATE rota_runs AS run
        SET state = 'retrying', reason = :reason, process_id = NULL, sent_at = NULL
        WHERE id IN (
            SELECT id FROM rota_runs WHERE state = 'running' AND process_id = :process_id ORDER BY id FOR UPDATE)
        RETURNING {ENDED}, run.job, run.state
    ), {attempts.keeping("ended", "released", error="NULL")}
    SELECT id, job, state, reason, error FROM ended
""")  # noqa: S608 — constants

#: No column counts how many times a run was lost. Lost attempts are those that neither failed, crashed nor were
#: postponed, and ``MOST_LOSSES`` limits their number. The row of a cancelled run has another token than the run's
#: attempt (``core/ledger/cancels.py``).
RELEASE_FORGOTTEN = text(f"""
    WITH unseen AS MATERIALIZED (
        SELECT id, attempt - coalesce(retried_after, 0) - failures - crashes - coalesce(laters, 0) > {MOST_LOSSES}
                   AS is_over
        FROM rota_runs
        WHERE state = 'running' AND process_id = :process_id
          AND started_at < clock_timestamp() - :age AND token <> ALL(:tokens)
          AND NOT EXISTS (SELECT 1 FROM rota_cancels AS mark WHERE mark.run_id = id AND mark.token = ANY(:tokens))
        ORDER BY id FOR UPDATE
    ), ended AS MATERIALIZED (
        UPDATE rota_runs AS run
        SET state = CASE WHEN is_over THEN 'dead' ELSE 'retrying' END,
            reason = CASE WHEN is_over THEN 'lost' ELSE :reason END,
            error = CASE WHEN is_over THEN format('its lease was lost in %s attempts under living processes', attempt)
                         ELSE error END,
            process_id = NULL, sent_at = NULL,
            finished_at = CASE WHEN is_over THEN clock_timestamp() END
        FROM unseen WHERE run.id = unseen.id
        RETURNING {ENDED}, run.job, run.state, is_over
    ), {attempts.keeping("ended", "released", error="CASE WHEN is_over THEN error END")}
    SELECT id, job, state, reason, error FROM ended
""")  # noqa: S608 — constants


@dataclass(frozen=True, slots=True)
class HandedBack:
    """A run that its process has released, with its new state: ``retrying``, or ``dead`` if it was cancelled or lost
    too often.
    """

    run_id: int
    job: str
    state: str
    reason: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of a failed attempt, for the ledger."""

    state: State
    reason: str
    error: str
    delay: timedelta = timedelta(0)
    #: The next attempt is due by this time, even if ``delay`` is longer.
    latest: datetime | None = None
    #: The traceback of the error, and the last lines that the attempt has logged, for people.
    traceback: str | None = None
    log: str | None = None


@lru_cache(maxsize=16)
def _escaped(statement: str) -> TextClause:
    return text(re.sub(r'"[^"]*"', lambda name: name[0].replace(":", r"\:"), statement))


def in_schema(statement: str, on: Session | Connection) -> TextClause:
    """Return the statement with the ledger's schema. A colon in the schema's name is escaped."""
    return _escaped(qualified(statement, on.connection() if isinstance(on, Session) else on))


def request(
    session: Session | Connection, job: str, *, key: str, queue: str, args: str, exclusive: bool, delay: timedelta,
    carried: bool, expires: timedelta | datetime | None = None,
) -> int:  # fmt: skip
    """Insert a run without a slot in the caller's transaction, and return its id.

    ``args`` is a JSON text. ``carried`` is whether the caller sends the message itself after the commit. If not, the
    commit notifies the dispatcher. A span ``expires`` is counted from the due time.
    """
    (run_id,) = request_many(
        session, job, keys=[key], queue=queue, args=[args], exclusive=exclusive, delay=delay, carried=carried,
        expires=expires,
    )  # fmt: skip
    return run_id


def request_many(
    session: Session | Connection, job: str, *, keys: Sequence[str], queue: str, args: Sequence[str], exclusive: bool,
    delay: timedelta, carried: bool, parent_id: int | None = None, expires: timedelta | datetime | None = None,
    subjects: Sequence[str | None] | None = None, priority: int = 0, limits: Names = NO_NAMES,
) -> list[int]:  # fmt: skip
    """Insert a run for each of ``keys`` and ``args``, as ``request`` does. Return the ids of the runs in that order.

    ``parent_id`` is the run that requests these runs. ``subjects`` has the row that each run is about, as ``table:id``.
    ``limits`` has the names of each run's limits.
    """
    shared = {"job": job, "queue": queue, "exclusive": exclusive, "delay": delay, "parent_id": parent_id}
    shared |= {"carried": carried, "channel": DUE_CHANNEL, "priority": priority, "limits_declared": limits.declared}
    is_span = isinstance(expires, timedelta)
    shared |= {"expires_in": expires if is_span else None, "expires_at": None if is_span else expires}
    statement = in_schema(REQUEST, session)
    run_ids: list[int] = []
    for start in range(0, len(args), BATCH):
        batch = slice(start, start + BATCH)
        values = {"keys": keys[batch], "args": args[batch], "subjects": subjects[batch] if subjects else []}
        values["limits"] = list(limits.filled[batch])
        run_ids += session.execute(statement, {**shared, **values}).scalars()
    return run_ids


def is_ahead(session: Session | Connection, instant: datetime, delay: timedelta) -> bool:
    """Return whether ``instant`` is later than the due time of a run that is requested now with ``delay``."""
    return bool(session.execute(IS_AHEAD, {"instant": instant, "delay": delay}).scalar_one())


def announce(connection: Connection) -> None:
    """Notify the dispatcher that runs are due and have not been sent."""
    connection.execute(ANNOUNCE, {"channel": DUE_CHANNEL})


def succeed(session: Session | Connection, lease: Lease, result: str | None, log: str | None = None) -> bool | None:
    """Record success in the caller's transaction. Return whether another run waits for the end of this run.

    Return None if the lease is lost. The caller must then roll back. ``log`` is the end of the attempt's log. It is not
    kept if this is the run's first attempt.
    """
    values = (lease.run_id, lease.token, lease.process_id, result)
    is_first = lease.attempt == 1
    rows = SUCCEED.rows(session, *values) if is_first else SUCCEED_AFTER_ANOTHER.rows(session, *values, log)
    return bool(rows[0][0]) if rows else None


def succeed_at_commit(session: Session, lease: Lease, *, is_exclusive: bool) -> list[tuple[bool]] | None:
    """Let the commit of ``session`` record success in the same round trip. Return None if that is not possible.

    Otherwise, if the run ``is_exclusive``, the returned list tells after the commit whether another run waits for the
    end of this run. Only for the first attempt of a run without a result. If the lease is lost, the commit raises an
    error for which ``may_have_lost`` is true.
    """
    fence = (lease.run_id, lease.token, lease.process_id)
    if is_exclusive:
        return SUCCEED_OR_FAIL.at_commit(session, fence, IS_AWAITED, lease.run_id)
    return SUCCEED_OR_FAIL.at_commit(session, fence)


def may_have_lost(error: DBAPIError) -> bool:
    """Return whether a commit may have failed because the lease is lost. A job's own trigger may divide by zero too."""
    return isinstance(error.orig, DivisionByZero)


def succeed_many(
    connection: Connection,
    process_id: int,
    outcomes: Sequence[tuple[Lease, str | None]],
    logs: Mapping[int, str | None] = NO_LOGS,
) -> dict[int, bool]:
    """Record the success of runs that one process has leases on. Return the runs whose leases were good.

    The value of each returned run tells whether another run waits for its end. ``logs`` has the end of the log of each
    attempt that was not its run's first attempt, by the run's id.
    """
    run_ids = [lease.run_id for lease, _ in outcomes]
    values = (process_id, run_ids, [lease.token for lease, _ in outcomes], [result for _, result in outcomes])
    if any(lease.attempt > 1 for lease, _ in outcomes):
        rows = SUCCEED_MANY_AFTER_OTHERS.rows(connection, *values, [logs.get(run_id) for run_id in run_ids])
    else:
        rows = SUCCEED_MANY.rows(connection, *values)
    return dict(rows)


def fail(connection: Connection, lease: Lease, failure: Failure) -> bool:
    """Record a failed attempt. If the lease is lost, record nothing and return False."""
    error = failure.error[:LONGEST_ERROR]
    values = (str(failure.state), failure.reason, error, failure.delay, failure.latest, failure.traceback, failure.log)
    return bool(FAIL.rows(connection, lease.run_id, lease.token, lease.process_id, *values))


def release(connection: Connection, process_id: int, reason: str) -> list[HandedBack]:
    """Release every run of a process that is ending, without counting a failure. Return these runs.

    A run that was cancelled ends.
    """
    return [HandedBack(*row) for row in connection.execute(RELEASE, {"process_id": process_id, "reason": reason})]


def release_forgotten(
    connection: Connection, process_id: int, tokens: Collection[int], age: timedelta, reason: str
) -> list[HandedBack]:
    """Release the runs that a process claimed at least ``age`` ago and whose tokens are not in ``tokens``.

    A claim whose answer was lost leaves such a run, and so does an outcome that could not be recorded. A run that is
    lost more than ``MOST_LOSSES`` times is dead afterwards. A cancelled run is dead too.
    """
    values = {"process_id": process_id, "tokens": list(tokens), "age": age, "reason": reason}
    return [HandedBack(*row) for row in connection.execute(RELEASE_FORGOTTEN, values)]
