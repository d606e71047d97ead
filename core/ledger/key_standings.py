"""Applies changes of schedules made at run time. Only the dispatcher does this, since only it knows the watermark.

A change applies to the slots after the job's watermark: all slots up to the watermark have been accounted for, and no
later slots. So it does not matter when the statement of a change was executed, or when its transaction committed. A new
schedule has slots from the time at which the dispatcher first sees it.

Each change is written to the log, from which `rota why` reads the schedule of any time. When a pause or a back-off
ends, a gap row records how many slots got no run because of it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from core.jobs import grid as grids
from core.jobs.grid import Shifted, grid
from core.jobs.schedules import Every

#: The most new rows that one pass reads.
MOST_NEW = 20_000
#: The most changed rows that one pass reads.
MOST_CHANGED = 5_000

#: A row that another transaction has locked is left to the next pass.
SEE_NEW = text("""
    WITH fresh AS MATERIALIZED (
        SELECT key FROM rota_key_schedules WHERE job = :job AND NOT is_seen AND since IS NULL
        ORDER BY key LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
    ), seen AS (
        UPDATE rota_key_schedules AS row SET
            since = :until, is_seen = true,
            held_since = CASE WHEN paused_until > :until THEN CAST(:until AS timestamptz) END
        FROM fresh WHERE row.job = :job AND row.key = fresh.key
        RETURNING row.key, changed_at, spec, phase, changed_by
    )
    INSERT INTO rota_key_schedule_log (job, key, at, since, action, spec, phase, by)
    SELECT :job, key, changed_at, :until, 'added', spec, phase, changed_by FROM seen
""")

CHANGED = text("""
    SELECT * FROM rota_key_schedules
    WHERE job = :job AND since IS NOT NULL AND NOT is_seen ORDER BY key LIMIT :most
""")
#: The schedules whose pause has ended at its planned time, without a change.
PAST_PAUSES = text("""
    SELECT * FROM rota_key_schedules
    WHERE job = :job AND paused_at IS NOT NULL AND paused_until <= :until AND held_since IS NOT NULL AND is_seen
    ORDER BY paused_until LIMIT :most
""")

#: A row that has changed again since it was read is left to the next pass, with its log and gaps.
SEE = text("""
    WITH change AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(CAST(:changes AS jsonb)) AS change (
            key text, id bigint, version bigint, spec text, every_seconds int, spread_seconds int, phase int,
            since timestamptz, extra_at timestamptz, stretched smallint, stretched_since timestamptz,
            held_since timestamptz)
    ), seen AS MATERIALIZED (
        UPDATE rota_key_schedules AS row SET
            spec = change.spec, every_seconds = change.every_seconds, spread_seconds = change.spread_seconds,
            phase = change.phase, next_spec = NULL, next_every_seconds = NULL, next_spread_seconds = NULL,
            next_phase = NULL, since = change.since, extra_at = change.extra_at, stretched = change.stretched,
            stretched_since = change.stretched_since, held_since = change.held_since, is_seen = true
        FROM change
        WHERE row.job = :job AND row.key = change.key AND row.id = change.id AND row.version = change.version
        RETURNING row.key
    ), gap AS (
        INSERT INTO rota_gaps (job, key, began_at, ended_at, reason, slots)
        SELECT :job, key, began_at, :after, reason, slots
        FROM jsonb_to_recordset(CAST(:gaps AS jsonb)) AS gap (
            key text, began_at timestamptz, reason text, slots bigint) JOIN seen USING (key)
    ), noted AS (
        INSERT INTO rota_key_schedule_log (job, key, at, since, action, spec, phase, stretched, extra_at, by, reason)
        SELECT :job, key, at, :after, action, spec, phase, stretched, extra_at, by, reason
        FROM jsonb_to_recordset(CAST(:log AS jsonb)) AS log (
            key text, at timestamptz, action text, spec text, phase int, stretched smallint, extra_at timestamptz,
            by text, reason text) JOIN seen USING (key)
    )
    SELECT key FROM seen
""")

#: A removal may have been committed between two statements of the last pass, so that slots of that pass got no runs. So
#: a removal applies to the slots of the last pass too. `rota why` reports the run of a slot if there is a run.
SEE_REMOVED = text("UPDATE rota_key_schedule_log SET since = :before WHERE job = :job AND since IS NULL")


@dataclass(frozen=True, slots=True)
class Change:
    """The effects of a change: the new state of the row, the gaps that end, and the entries of the log."""

    row: dict[str, Any]
    gaps: list[dict[str, Any]]
    log: list[dict[str, Any]]


def see(connection: Connection, job: str, after: datetime, until: datetime, *, before: datetime) -> dict[str, int]:
    """Apply the changes of a job's schedules to slots after ``after``, and new schedules to slots after ``until``.

    ``after`` is the job's watermark, and ``before`` is its watermark at the last pass. Return, for each reason, how
    many slots are in the gaps that end now.
    """
    connection.execute(SEE_REMOVED, {"job": job, "before": before})
    connection.execute(SEE_NEW, {"job": job, "until": until, "most": MOST_NEW})
    values = {"job": job, "until": until, "most": MOST_CHANGED}
    changed = connection.execute(CHANGED, values).all()
    rows = [*changed, *connection.execute(PAST_PAUSES, values).all()]
    changes = [change_of(row, after, until) for row in rows if is_readable(row)]
    return _write(connection, job, after, changes) if changes else {}


def _write(connection: Connection, job: str, after: datetime, changes: Sequence[Change]) -> dict[str, int]:
    gaps = [gap for change in changes for gap in change.gaps if gap["slots"]]
    values = {
        "job": job,
        "after": after,
        "changes": json_of([change.row for change in changes]),
        "gaps": json_of(gaps),
        "log": json_of([entry for change in changes for entry in change.log]),
    }
    seen = set(connection.execute(SEE, values).scalars())
    found: dict[str, int] = {}
    for gap in gaps:
        if gap["key"] in seen:
            found[gap["reason"]] = found.get(gap["reason"], 0) + gap["slots"]
    return found


def json_of(values: Sequence[dict[str, Any]]) -> str:
    """Return ``values`` as JSON, with times in ISO 8601."""
    return json.dumps(values, default=datetime.isoformat)


def is_readable(row: Row[Any]) -> bool:
    """Return whether this process can read the schedules of a row. If not, another leader applies the change."""
    return all(grids.is_readable(spec) for spec in (row.spec, row.next_spec) if spec is not None)


def change_of(row: Row[Any], after: datetime, until: datetime) -> Change:
    """Return the new state of a row when the dispatcher sees its change, with the watermark ``after``."""
    is_retimed = row.next_spec is not None
    is_held = row.paused_at is not None and row.paused_until > until
    is_stretched = row.stretch != row.stretched
    before = grid(row.spec, row.phase, row.stretched)
    present = {
        "key": row.key,
        "id": row.id,
        "version": row.version,
        "spec": row.next_spec if is_retimed else row.spec,
        "every_seconds": row.next_every_seconds if is_retimed else row.every_seconds,
        "spread_seconds": row.next_spread_seconds if is_retimed else row.spread_seconds,
        "phase": row.next_phase if is_retimed else row.phase,
        "since": after if is_retimed else row.since,
        "extra_at": row.extra_at,
        "stretched": row.stretch,
        "stretched_since": stretched_since(row, after) if row.stretch else None,
        "held_since": held_since(row, after) if is_held else None,
    }
    if is_retimed:
        present["extra_at"] = earlier_slot(row, before, grid(row.next_spec, row.next_phase, row.stretch), after)
    ends = is_retimed or is_stretched
    return Change(
        present,
        [*gap_of_pause(row, before, after, has_ended=ends or not is_held), *gap_of_backoff(row, after, has_ended=ends)],
        list(entries(row, present, is_retimed=is_retimed, is_stretched=is_stretched, is_held=is_held)),
    )


def stretched_since(row: Row[Any], after: datetime) -> datetime:
    """Return the time since which the row has had its present stretch."""
    is_same = row.stretch == row.stretched and row.next_spec is None
    return row.stretched_since if is_same else after


def held_since(row: Row[Any], after: datetime) -> datetime:
    """Return the time since which slots of the row are left out and belong to the next gap."""
    is_same = row.held_since is not None and row.next_spec is None and row.stretch == row.stretched
    return row.held_since if is_same else after


def earlier_slot(row: Row[Any], before: Shifted, present: Shifted, after: datetime) -> datetime | None:
    """Return the next slot of the former schedule, if it comes before the next slot of the new schedule."""
    due = before.next_after(after)
    if row.extra_at is not None and after < row.extra_at:
        due = min(due, row.extra_at)
    return due if due < present.next_after(after) else None


def gap_of_pause(row: Row[Any], before: Shifted, after: datetime, *, has_ended: bool) -> Iterator[dict[str, Any]]:
    """Yield the gap of a pause that applied until now."""
    if row.held_since is not None and has_ended:
        extra = row.extra_at is not None and row.held_since < row.extra_at <= after
        yield gap(row, row.held_since, "paused", count(before, row.held_since, after) + extra)


def gap_of_backoff(row: Row[Any], after: datetime, *, has_ended: bool) -> Iterator[dict[str, Any]]:
    """Yield the gap of a back-off that applied until now."""
    if row.stretched and has_ended:
        every = count(grid(row.spec, row.phase), row.stretched_since, after)
        yield gap(
            row,
            row.stretched_since,
            "backoff",
            every - count(grid(row.spec, row.phase, row.stretched), row.stretched_since, after),
        )


def gap(row: Row[Any], began_at: datetime, reason: str, slots: int) -> dict[str, Any]:
    """Return a gap row of one key."""
    return {"key": row.key, "began_at": began_at, "reason": reason, "slots": slots}


def entries(
    row: Row[Any], present: dict[str, Any], *, is_retimed: bool, is_stretched: bool, is_held: bool
) -> Iterator[dict[str, Any]]:
    """Yield the entries of the log for a change."""
    timing = {name: present[name] for name in ("key", "spec", "phase", "stretched", "extra_at")}
    if is_retimed:
        yield {**timing, "action": "changed", "at": row.changed_at, "by": row.changed_by}
    if is_stretched:
        yield {**timing, "action": "stretched", "at": row.changed_at, "reason": ended_or_died(row)}
    if is_held != (row.held_since is not None):
        action, at = ("paused", row.paused_at) if is_held else ("resumed", row.paused_until)
        yield {**timing, "action": action, "at": at, "by": row.paused_by, "reason": row.pause_reason}


def ended_or_died(row: Row[Any]) -> str:
    """Return why the stretch of a row has changed."""
    if row.failures:
        return f"{row.failures} runs died in a row"
    return "a run succeeded, or the back-off was ended by hand"


def count(slots: Shifted, after: datetime, until: datetime) -> int:
    """Return how many slots a schedule has with ``after`` < slot <= ``until``."""
    if until <= after:
        return 0
    base, shift = slots.base, slots.shift
    if isinstance(base, Every):
        return (base.latest_at(until - shift) - base.latest_at(after - shift)) // base.interval
    return sum(1 for _ in base.between(after - shift, until - shift))
