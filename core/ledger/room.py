"""Wakes the runs that wait for a limit, by priority and due time, as many as there is room for.

A run that finds a limit full is parked, with that limit's name in ``waits_for``. The dispatcher does not look at parked
runs, however many there are. A run is woken when there may be room: by the process in which a holder of the limit has
ended, or by the dispatcher. The dispatcher looks at all names with parked runs once per pass, and when a limit is
refilled or opens again.

A woken run has not started yet, and its claim checks all its limits again. Until the claim, room is kept for the run
for some seconds (``CALLED_SECONDS``), so that runs that come later do not overtake it. If the run is not claimed in
this time, other runs take the room.
"""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection, text

from core.ledger.carrier import OutgoingRun
from core.ledger.limits import CALLED, NEARLY_ONE, ROOM, STANDING
from core.ledger.models import IS_LIMITED

#: The most runs that one statement wakes for one name.
MOST_WOKEN = 500

#: The order in which runs wait for a name.
IN_ORDER = "ORDER BY priority DESC, due_at, id"

#: Parts of a WITH clause: the limits in ``wanted`` that runs wait for, with the declarations of the first of these
#: runs.
AWAITED = f"""
    asked AS MATERIALIZED (
        SELECT wanted.name, most AS most_woken, ARRAY[first.declared] AS declared
        FROM wanted CROSS JOIN LATERAL (
            SELECT limits_declared[array_position(limits, waits_for)] AS declared FROM rota_runs
            WHERE {IS_LIMITED} AND waits_for = wanted.name {IN_ORDER} LIMIT 1) AS first
    ), {STANDING}
"""  # noqa: S608 — constants

#: Wakes runs that wait for the named limits. With :jobs, only runs of these jobs are woken. A run that another
#: transaction has locked is left to the next pass of the dispatcher.
WAKE = text(f"""
    WITH wanted AS MATERIALIZED (
        SELECT name, max(most) AS most FROM (
            SELECT * FROM unnest(CAST(:names AS text[]), CAST(:most AS int[])) AS given (name, most)
            UNION ALL
            SELECT name, {MOST_WOKEN} FROM rota_runs, unnest(limits) AS name
            WHERE id = ANY(CAST(:run_ids AS bigint[]))) AS either
        GROUP BY name
    ), {AWAITED}, room AS MATERIALIZED (
        SELECT name, least(most_woken, {ROOM} - {CALLED}) AS room FROM standing
    ), first AS MATERIALIZED (
        SELECT run.id FROM room CROSS JOIN LATERAL (
            SELECT id FROM rota_runs
            WHERE {IS_LIMITED} AND waits_for = room.name
              AND (CAST(:jobs AS text[]) IS NULL OR job = ANY(CAST(:jobs AS text[])))
            {IN_ORDER} LIMIT greatest(room.room, 0)) AS run
    ), unlocked AS MATERIALIZED (
        SELECT id FROM rota_runs WHERE id IN (SELECT id FROM first) AND {IS_LIMITED} FOR UPDATE SKIP LOCKED
    )
    UPDATE rota_runs AS run SET sent_at = CASE WHEN :carried THEN statement_timestamp() END
    FROM unlocked WHERE run.id = unlocked.id
    RETURNING run.id, run.job, run.queue, run.priority, run.due_at
""")  # noqa: S608 — constants

#: A part of WITH RECURSIVE: the names with parked runs that come after :after. The query reads one index entry for each
#: name.
NAMED = f"""
    named AS (
        (SELECT waits_for FROM rota_runs WHERE {IS_LIMITED} AND waits_for > :after ORDER BY waits_for LIMIT 1)
        UNION ALL
        SELECT following.* FROM named CROSS JOIN LATERAL (
            SELECT waits_for FROM rota_runs WHERE {IS_LIMITED} AND waits_for > named.waits_for
            ORDER BY waits_for LIMIT 1) AS following
    )
"""  # noqa: S608 — constants
NAMES = text(f"WITH RECURSIVE {NAMED} SELECT waits_for FROM named LIMIT :most")  # noqa: S608 — constants

#: The seconds until a refill or the end of a closing makes room under one of the names; null if no name waits for
#: either.
NEXT = text(f"""
    WITH wanted AS MATERIALIZED (
        SELECT name, 0 AS most FROM unnest(CAST(:names AS text[])) AS given (name)
    ), {AWAITED}
    SELECT extract(epoch FROM min(greatest(
        closed_until, now + make_interval(secs => ({NEARLY_ONE} - tokens) / per_second))) - min(now))
    FROM standing
    WHERE closed_until IS NOT NULL OR tokens < {NEARLY_ONE}
""")  # noqa: S608 — constants


def wake(
    connection: Connection,
    ended: Mapping[str, int],
    waiting: Collection[int] = (),
    *,
    jobs: Collection[str] | None = None,
    carried: bool,
) -> list[OutgoingRun]:
    """Wake the first runs that wait for the limits ``ended``, and for any limit of the runs ``waiting``.

    Return the woken runs.

    ``ended`` has, for each name, at most how many runs to wake. ``jobs`` are the jobs whose runs are woken; None for
    all jobs. ``carried`` is whether the caller sends the messages.
    """
    names = {"names": list(ended), "most": list(ended.values()), "run_ids": list(waiting)}
    rows = connection.execute(WAKE, {**names, "jobs": None if jobs is None else list(jobs), "carried": carried}).all()
    in_order = sorted(rows, key=lambda row: (-row.priority, row.due_at, row.id))
    return [OutgoingRun(row.id, row.job, row.queue, row.priority) for row in in_order]


def awaited(connection: Connection, after: str, most: int) -> Sequence[str]:
    """Return up to ``most`` sorted names that parked runs wait for and that come after ``after``."""
    return list(connection.execute(NAMES, {"after": after, "most": most}).scalars())


def seconds_until_room(connection: Connection, names: Collection[str]) -> float | None:
    """Return in how many seconds a refill, or the end of a closing, may make room.

    Return None if no run waits for a refill or the end of a closing.
    """
    seconds = connection.execute(NEXT, {"names": list(names)}).scalar_one()
    return None if seconds is None else max(float(seconds), 0.0)
