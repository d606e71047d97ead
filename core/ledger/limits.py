"""Limits: how many runs may be at work under one name at the same time, and how many may start within a time.

A run that has limits is claimed by a statement of its own (``core/ledger/claims.py``). One round trip sends two
statements, which PostgreSQL executes as one transaction. The first statement takes an advisory lock for each of the
run's names, in a fixed order, so two claims cannot deadlock. The second statement begins when the locks are taken, so
its snapshot shows all former claims of these names. PostgreSQL ends the transaction without another command, so a
process that stops or dies meanwhile keeps no lock.

``rota_limits`` has a row for each name in use. Its ``holders`` are the runs that held the limit at the last claim,
including the run of that claim. The rows of these runs show how many of them are still at work. So no counter goes up
and down that could become wrong: a run holds its limits exactly as long as it is ``running``. A cancelled run is
``running`` until its function has returned. For a rate, the row has the tokens that were left after the last claim, and
each claim adds the tokens that have been refilled since. A claim whose run is released before its function is called
gives its tokens back.

The numbers of a limit are the smallest that a live process declares (``rota_releases.limits``). A name that no live
process declares any more limits nothing.

A run that finds one of its limits full is parked and waits for that limit's name (``core/ledger/room.py``).
"""

from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from core.ledger.leases import Lease
from core.ledger.prepared import Prepared
from core.ledger.runs import in_schema

#: A run that was woken keeps its room for this many seconds: no run that comes later takes the room.
CALLED_SECONDS = 5
#: Tokens are floating-point numbers, so a token that is nearly one counts as one.
NEARLY_ONE = "0.999999"
#: A row of ``rota_limits`` that no claim has used for this many seconds is deleted.
UNUSED_SECONDS = 3600
BATCH = 1000

#: Takes an advisory lock for each limit that the FROM clause ``{}`` selects, in a fixed order. The seed of the hash is
#: different for each ledger of a database, so that ledgers in different schemas have different locks.
IN_ORDER = """
    SELECT pg_advisory_xact_lock(place) FROM (
        SELECT DISTINCT hashtextextended(name, 'rota_runs'::regclass::oid::bigint) AS place
        FROM {} ORDER BY place OFFSET 0) AS in_order
"""
#: Parameter: the run.
LOCK = Prepared(
    "rota_lock_limits",
    ("bigint",),
    IN_ORDER.format("rota_runs, unnest(limits) AS own (name) WHERE id = $1 AND state IN ('queued', 'retrying')"),
)
#: Parameter: the names.
LOCK_NAMES = Prepared("rota_lock_limit_names", ("text[]",), IN_ORDER.format("unnest($1) AS own (name)"))

#: Parameter: the names of the limits. This may store more tokens than a limit may have; the next claim corrects the
#: number.
GIVE_BACK = Prepared(
    "rota_give_back_tokens",
    ("text[]",),
    "UPDATE rota_limits SET tokens = tokens + 1 WHERE name = ANY($1) AND tokens IS NOT NULL RETURNING name",
)

#: Sets the limits of a run that was inserted when its job had no limits. Parameters: the run, the names of its limits,
#: the same names as declared.
FILL = Prepared(
    "rota_fill_limits",
    ("bigint", "text[]", "text[]"),
    """
    UPDATE rota_runs AS run SET limits = $2, limits_declared = $3
    FROM (SELECT id FROM rota_runs WHERE id = $1 AND state IN ('queued', 'retrying') AND limits IS NULL
          FOR UPDATE SKIP LOCKED) AS unlocked
    WHERE run.id = unlocked.id
    RETURNING run.id
    """,
)

#: Parts of a WITH clause. They need an earlier part ``asked``, with the names of limits and, for each name, an array of
#: the declarations that it was filled from. The part ``standing`` returns the numbers and the use of each of these
#: limits.
STANDING = """
    clock AS MATERIALIZED (
        SELECT clock_timestamp() AS now
    ), live AS MATERIALIZED (
        SELECT DISTINCT release FROM rota_processes, clock WHERE expires_at > now
    ), standing AS MATERIALIZED (
        SELECT asked.*, size.*, now,
            ARRAY(SELECT run.id FROM unnest(kept.holders) AS holder (id) JOIN rota_runs AS run ON run.id = holder.id
                  WHERE coalesce(run.state, '') = 'running') AS holders,
            least(size.most, coalesce(
                kept.tokens + size.per_second * greatest(CAST(extract(epoch FROM now - used_at) AS float), 0),
                size.most)) AS tokens,
            (SELECT max(until) FROM rota_closings AS closing
             WHERE closing.name = asked.name AND until > now) AS closed_until
        FROM clock CROSS JOIN asked CROSS JOIN LATERAL (
            SELECT min(CAST(limits -> own ->> 'at_once' AS int)) AS at_once,
                   min(CAST(limits -> own ->> 'most' AS float)) AS most,
                   min(CAST(limits -> own ->> 'per_second' AS float)) AS per_second
            FROM live JOIN rota_releases AS release ON release.fingerprint = live.release,
                 unnest(asked.declared) AS own) AS size
        LEFT JOIN rota_limits AS kept ON kept.name = asked.name
    )
"""

#: The number of runs that were woken for ``standing.name`` and have not been claimed yet.
CALLED = f"""(
    SELECT count(*) FROM rota_runs WHERE state IN ('queued', 'retrying') AND sent_at < 'infinity'
      AND waits_for IS NOT NULL AND waits_for = standing.name
      AND sent_at > now - interval '{CALLED_SECONDS} seconds')
"""  # noqa: S608 — a constant

#: The number of further runs that may start now under ``standing.name``; null if any number may start.
ROOM = f"""
    CASE WHEN closed_until IS NOT NULL THEN 0
         ELSE least(at_once - cardinality(holders), floor(tokens + 1 - {NEARLY_ONE})) END
"""

CLOSE = """
    INSERT INTO ledger.rota_closings (name, until, reason)
    VALUES (:name, coalesce(CAST(:until AS timestamptz), clock_timestamp() + CAST(:after AS interval)), :reason)
    RETURNING until
"""

#: The rows that are no longer needed: all tokens are back, and no holder is at work. The condition on ``used_at`` is
#: checked again under the row's lock, so a row that a claim uses meanwhile is kept.
DELETE_UNUSED = text(f"""
    WITH batch AS MATERIALIZED (
        SELECT name FROM rota_limits AS kept
        WHERE used_at < statement_timestamp() - interval '{UNUSED_SECONDS} seconds'
          AND (full_at IS NULL OR full_at < statement_timestamp()) AND NOT EXISTS (
            SELECT 1 FROM unnest(kept.holders) AS holder (id) JOIN rota_runs AS run ON run.id = holder.id
            WHERE coalesce(run.state, '') = 'running')
        LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    DELETE FROM rota_limits WHERE name IN (SELECT name FROM batch)
""")  # noqa: S608 — a constant
DELETE_CLOSINGS = text("DELETE FROM rota_closings WHERE until < statement_timestamp() - CAST(:kept AS interval)")


def give_back(connection: Connection, lease: Lease) -> None:
    """Give back the tokens of a claim that was undone before the run's function was called, if the run has limits.

    If the process dies before this call, the tokens are lost until the next refill, and no limit is exceeded.
    """
    if lease.limits:
        GIVE_BACK.rows_after(LOCK_NAMES, connection, (lease.limits,), lease.limits)


def close(session: Session, name: str, *, until: datetime | None, after: object, reason: str | None) -> datetime:
    """Close a limit in the caller's transaction, until a time or for a span. Return the time at which it opens."""
    values = {"name": name, "until": until, "after": after, "reason": reason}
    closed: datetime = session.execute(in_schema(CLOSE, session), values).scalar_one()
    return closed


def delete_unused(connection: Connection) -> int:
    """Delete up to ``BATCH`` rows of limits that have not been used for an hour. Return how many."""
    return connection.execute(DELETE_UNUSED, {"batch": BATCH}).rowcount
