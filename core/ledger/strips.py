"""Reads what became of the slots of many schedules in a span of time, for their strips.

The cost does not depend on how many runs have succeeded in time: these are only counted, in an index. The index
``rota_runs_notable`` has all other slots that have ended or were late. A lane is one schedule, or all schedules that
keys of one job have; its ``place`` is its position in the list of lanes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from core.ledger.models import IS_FORGETTABLE, IS_NOTABLE

LANES = """
    unnest(CAST(:places AS int[]), CAST(:jobs AS text[]), CAST(:keys AS text[]), CAST(:exact AS boolean[]))
        AS lane (place, job, key, is_exact)
"""
EDGES = "CAST(:edges AS timestamptz[])"
WITHIN = f"slot >= ({EDGES})[1] AND slot < ({EDGES})[array_upper({EDGES}, 1)]"
SECOND = "CAST(date_part('epoch', slot) AS bigint)"
BIN = f"width_bucket(slot, {EDGES}) - 1"
#: A cell of an exact lane is one slot, named by its second. Other cells are named by the number of their bin.
CELL = f"CASE WHEN lane.is_exact THEN {SECOND} ELSE {BIN} END"

#: An index-only scan for each lane. The lanes of all keys of a job are left out, since their slots are too many.
EXACT = text(f"""
    SELECT lane.place, recorded.cells, array_fill(1, ARRAY[cardinality(recorded.cells)]) AS slots
    FROM {LANES} CROSS JOIN LATERAL (
        SELECT array_agg({SECOND} ORDER BY slot) AS cells FROM rota_runs AS run
        WHERE run.job = lane.job AND run.key = lane.key AND {WITHIN}) AS recorded
    WHERE lane.is_exact AND recorded.cells IS NOT NULL
""")  # noqa: S608 — constants
BINNED = text(f"""
    SELECT lane.place, recorded.cells, recorded.slots FROM {LANES} CROSS JOIN LATERAL (
        SELECT array_agg(cell ORDER BY cell) AS cells, array_agg(slots ORDER BY cell) AS slots FROM (
            SELECT {BIN} AS cell, CAST(count(*) AS int) AS slots FROM rota_runs AS run
            WHERE run.job = lane.job AND run.key = lane.key AND {WITHIN} GROUP BY 1) AS bins) AS recorded
    WHERE NOT lane.is_exact AND lane.key IS NOT NULL AND recorded.cells IS NOT NULL
""")  # noqa: S608 — constants

#: Whether a slot of any key of a job has succeeded in each bin. Deleted runs, runs without a result, and the runs of a
#: few keys are looked at, a few index entries for each bin.
ANY_KEY = text(f"""
    SELECT lane.place, array_agg(bin.number - 1 ORDER BY bin.number) AS cells
    FROM {LANES} CROSS JOIN LATERAL (
        SELECT number, ({EDGES})[number] AS begins, ({EDGES})[number + 1] AS ends
        FROM generate_series(1, array_upper({EDGES}, 1) - 1) AS number) AS bin
    WHERE lane.key IS NULL AND bin.begins < :now AND (
        EXISTS (SELECT 1 FROM rota_success_counts AS counted WHERE counted.job = lane.job
                  AND counted.minute >= bin.begins AND counted.minute < bin.ends)
        OR EXISTS (SELECT 1 FROM rota_runs AS run WHERE run.job = lane.job AND {IS_FORGETTABLE}
                     AND finished_at >= bin.begins AND finished_at < bin.ends)
        OR EXISTS (SELECT 1 FROM (SELECT key FROM rota_key_schedules AS row WHERE row.job = lane.job ORDER BY key
                                  LIMIT 20) AS few, LATERAL (
            SELECT 1 FROM rota_runs AS run WHERE run.job = lane.job AND run.key = few.key AND slot >= bin.begins
              AND slot < bin.ends AND state = 'succeeded' LIMIT 1) AS found))
    GROUP BY lane.place
""")  # noqa: S608 — constants

#: A slot that was tried more than once counts as retried, unless it has ended otherwise.
OUTCOME = """
    CASE WHEN state IN ('dead', 'missed', 'orphaned', 'skipped') THEN state
         WHEN state = 'retrying' OR attempt > 1 THEN 'retrying'
         WHEN state = 'queued' AND slot >= statement_timestamp() - interval '30 seconds' THEN 'queued'
         WHEN state = 'running' AND started_at - slot <= interval '30 seconds' THEN 'running'
         ELSE 'late' END
"""
FACTS = """
    CAST(count(*) AS int) AS slots, min(slot) AS first, max(slot) AS last, (array_agg(id ORDER BY slot))[1] AS run
"""
NOTABLE = text(f"""
    SELECT lane.place, event.* FROM {LANES} CROSS JOIN LATERAL (
        SELECT {CELL} AS cell, {OUTCOME} AS outcome, reason, {FACTS} FROM rota_runs AS run
        WHERE run.job = lane.job AND (lane.key IS NULL OR run.key = lane.key) AND {WITHIN} AND {IS_NOTABLE}
        GROUP BY 1, 2, 3) AS event
""")  # noqa: S608 — constants
#: Slots that are running or queued, and that the index of notable slots does not contain.
LIVE = text(f"""
    SELECT lane.place, {CELL} AS cell, {OUTCOME} AS outcome, CAST(NULL AS text) AS reason, {FACTS}
    FROM (SELECT * FROM (SELECT job, key, slot, id, state, attempt, started_at FROM rota_runs
                         WHERE state = 'running' AND {WITHIN} LIMIT :most) AS running
          UNION ALL
          SELECT * FROM (SELECT job, key, slot, id, state, attempt, started_at FROM rota_runs
                         WHERE state = 'queued' AND slot IS NOT NULL AND {WITHIN} LIMIT :most) AS queued) AS run
    JOIN {LANES} ON run.job = lane.job AND (lane.key IS NULL AND run.key <> '' OR run.key = lane.key)
    WHERE ({IS_NOTABLE}) IS NOT TRUE GROUP BY 1, 2, 3
""")  # noqa: S608 — constants

GAPS = text("""
    SELECT lane.place, gap.* FROM unnest(CAST(:places AS int[]), CAST(:jobs AS text[]), CAST(:keys AS text[]))
        AS lane (place, job, key) CROSS JOIN LATERAL (
        SELECT reason, began_at, ended_at, CAST(sum(slots) AS bigint) AS slots, count(key) AS keys
        FROM rota_gaps WHERE rota_gaps.job = lane.job AND (lane.key IS NULL OR rota_gaps.key = lane.key
                         OR rota_gaps.key IS NULL) AND ended_at >= :after AND began_at < :before
        GROUP BY reason, began_at, ended_at ORDER BY began_at LIMIT :most) AS gap
    WHERE lane.key IS DISTINCT FROM ''
""")
RELEASES = text("""
    SELECT fingerprint, first_seen_at FROM rota_releases WHERE first_seen_at >= :after AND first_seen_at < :before
    ORDER BY first_seen_at DESC LIMIT :most
""")
#: Each schedule that a job had in a release, and the time in which processes with this schedule were seen.
DECLARED = text("""
    SELECT known.job, known.described ->> 'schedule' AS spec, min(first_seen_at) AS first_seen_at,
           max(last_seen_at) AS last_seen_at
    FROM rota_releases, jsonb_each(jobs) AS known (job, described) WHERE last_seen_at >= :after GROUP BY 1, 2
""")
#: The most waiting runs, the most gaps of a lane, and the most releases that are read.
MOST_LIVE, MOST_GAPS, MOST_RELEASES = 10_000, 1_000, 50


@dataclass(frozen=True, slots=True)
class Lane:
    """A schedule whose slots are read."""

    job: str
    #: Empty for a schedule that the job declares; None for the schedules of all keys of the job.
    key: str | None = ""
    #: Whether each slot has a cell of its own.
    is_exact: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """The cells that have slots on record, and the number of slots in each; None if the slots are not counted."""

    cells: list[int]
    slots: list[int] | None


def _values(lanes: Sequence[Lane], edges: Sequence[datetime]) -> dict[str, Any]:
    return {
        "places": list(range(len(lanes))),
        "jobs": [lane.job for lane in lanes],
        "keys": [lane.key for lane in lanes],
        "exact": [lane.is_exact for lane in lanes],
        "edges": list(edges),
    }


def recorded(
    connection: Connection, lanes: Sequence[Lane], edges: Sequence[datetime], now: datetime
) -> dict[int, Recorded]:
    """Return the cells with slots on record of each lane, by its place. ``edges`` are the bounds of the bins."""
    values = _values(lanes, edges)
    found: dict[int, Recorded] = {}
    for is_needed, statement in (
        (any(lane.is_exact for lane in lanes), EXACT),
        (any(not lane.is_exact and lane.key is not None for lane in lanes), BINNED),
    ):
        if is_needed:
            found |= {row.place: Recorded(row.cells, row.slots) for row in connection.execute(statement, values)}
    if any(lane.key is None for lane in lanes):
        rows = connection.execute(ANY_KEY, {**values, "now": now})
        found |= {row.place: Recorded(row.cells, None) for row in rows}
    return found


def events(connection: Connection, lanes: Sequence[Lane], edges: Sequence[datetime]) -> list[Row[Any]]:
    """Return the slots that did not simply succeed in time, by lane, cell, outcome and reason."""
    values = _values(lanes, edges)
    live = connection.execute(LIVE, {**values, "most": MOST_LIVE}).all()
    return [*connection.execute(NOTABLE, values).all(), *live]


def gaps(connection: Connection, lanes: Sequence[Lane], after: datetime, before: datetime) -> list[Row[Any]]:
    """Return the gaps of schedules made at run time, in each of which slots have no runs."""
    values = {**_values(lanes, ()), "after": after, "before": before, "most": MOST_GAPS}
    return list(connection.execute(GAPS, values).all()) if any(lane.key != "" for lane in lanes) else []


def releases(connection: Connection, after: datetime, before: datetime) -> Collection[Row[Any]]:
    """Return the newest releases that were first seen in a span."""
    values = {"after": after, "before": before, "most": MOST_RELEASES}
    return connection.execute(RELEASES, values).all()


def declared_since(connection: Connection, schedules: Mapping[str, str], after: datetime) -> dict[str, datetime]:
    """Return the time since which only the present schedule of each job has applied, for jobs that releases alive after
    ``after`` had. ``schedules`` are the present schedules.
    """
    found: dict[str, datetime] = {}
    began: dict[str, datetime] = {}
    for row in connection.execute(DECLARED, {"after": after}):
        began[row.job] = min(row.first_seen_at, began.get(row.job, row.first_seen_at))
        if row.spec != schedules.get(row.job):
            found[row.job] = max(row.last_seen_at, found.get(row.job, row.last_seen_at))
    return began | found
