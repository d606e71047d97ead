"""Plans of changes to many runs: their items, their confirmation, and how far they have been carried out.

A plan stores a version of each run: a hash of the run's state, attempt and token, and of the times when it ended and
was retried. If the version of a run has changed, the run is left out, even if its state is the same again. The items of
a plan never change. ``position`` counts the items that were changed or left out. It is updated in the transaction that
changes the runs, so that no item is changed twice.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from core.ledger.models import OperationItemsRow, OperationRow, RunRow
from core.ledger.operations import Filter

PLANS = OperationRow.__table__
ITEMS = OperationItemsRow.__table__
RUNS = RunRow.__table__
#: The number of items in one row.
CHUNK = 1000
#: The most items of a plan.
MOST = 100_000
#: A plan can be confirmed for this long after it was made.
LASTS = timedelta(minutes=10)

#: The reason of a waiting run may change while the run waits, so it is not part of the version.
VERSION = """
    hashtextextended(CAST(ROW(
        state, attempt, token, extract(epoch FROM finished_at), extract(epoch FROM retried_at),
        CASE WHEN finished_at IS NOT NULL THEN reason END) AS text), 0)
"""
LOCKED = text(f"""
    SELECT id, job, state, reason, {VERSION} AS version FROM rota_runs WHERE id = ANY(:ids) ORDER BY id FOR UPDATE
""")  # noqa: S608 — a constant
DIGEST = text("""
    SELECT encode(sha256(convert_to(coalesce(string_agg(
        CAST(ids AS text) || CAST(versions AS text) || CAST(places AS text), ',' ORDER BY chunk), ''), 'UTF8')), 'hex')
    FROM rota_operation_items WHERE operation_id = :id
""")
ITEMS_OF = text("""
    SELECT ids[:first : :last] AS ids, versions[:first : :last] AS versions, places[:first : :last] AS places
    FROM rota_operation_items WHERE operation_id = :id AND chunk = :chunk
""")
LEAVE_OUT = text("""
    UPDATE rota_operation_items SET left_out = left_out || CAST(:items AS text[]),
        left_because = left_because || CAST(:reasons AS text[])
    WHERE operation_id = :id AND chunk = :chunk
""")
LEFT_OUT = text("""
    SELECT reason, count(*) AS items FROM rota_operation_items, unnest(left_because) AS reason
    WHERE operation_id = :id GROUP BY reason ORDER BY count(*) DESC, reason
""")


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a plan: a run with its version, or an old message or result in Redis, as JSON."""

    run_id: int | None
    version: int | None
    place: str | None = None

    @property
    def name(self) -> str:
        """The item as a text: the run's id, or the JSON."""
        return str(self.run_id) if self.place is None else self.place


def create(connection: Connection, action: str, options: Mapping[str, Any], by: str) -> int:
    """Insert a plan without items. Return its id."""
    values = {"action": action, "options": dict(options), "created_by": by}
    expires_at = func.clock_timestamp() + literal(LASTS)
    return int(
        connection.execute(
            insert(OperationRow).values(**values, expires_at=expires_at).returning(PLANS.c.id)
        ).scalar_one()
    )


def add_runs(connection: Connection, plan_id: int, wanted: Filter, ids: Sequence[int] = ()) -> dict[str, int]:
    """Add the runs that meet ``wanted`` to a plan, at most one more than ``MOST``. With ``ids``, add the runs of these
    ids that have one of the states of ``wanted``.

    Return the number of runs of each job.
    """
    conditions = [RUNS.c.id.in_(ids), RUNS.c.state.in_(list(map(str, wanted.states)))] if ids else wanted.conditions()
    limit = min(wanted.limit or MOST + 1, MOST + 1)
    version: ColumnElement[int] = literal_column(VERSION).label("version")
    chosen = select(RUNS.c.id, RUNS.c.job, version).where(*conditions).order_by(RUNS.c.id).limit(limit)
    found = chosen.cte("chosen")
    place = (func.row_number().over(order_by=found.c.id) - 1) // CHUNK
    numbered = select(found.c.id, found.c.version, place.label("chunk")).subquery()
    grouped = select(
        literal(plan_id),
        numbered.c.chunk,
        func.array_agg(aggregate_order_by(numbered.c.id, numbered.c.id)),
        func.array_agg(aggregate_order_by(numbered.c.version, numbered.c.id)),
    ).group_by(numbered.c.chunk)
    stored = insert(OperationItemsRow).from_select(["operation_id", "chunk", "ids", "versions"], grouped).cte("stored")
    counted = select(found.c.job, func.count()).group_by(found.c.job).add_cte(stored)
    return {row[0]: row[1] for row in connection.execute(counted)}


def add_places(connection: Connection, plan_id: int, places: Sequence[str]) -> None:
    """Add old messages and results in Redis to a plan, as JSON."""
    for first in range(0, len(places), CHUNK):
        values = {"operation_id": plan_id, "chunk": first // CHUNK, "places": places[first : first + CHUNK]}
        connection.execute(insert(OperationItemsRow).values(**values))


def seal(connection: Connection, plan_id: int, by_job: Mapping[str, int], total: int) -> Row[Any]:
    """Complete a plan whose items have been added: store its numbers and its digest. Return the plan."""
    items = connection.execute(DIGEST, {"id": plan_id}).scalar_one()
    row = found(connection, plan_id)
    assert row is not None
    bound = json.dumps([row.action, row.options, items], sort_keys=True)
    digest = f"sha256:{hashlib.sha256(bound.encode()).hexdigest()}"
    return change(connection, plan_id, by_job=dict(by_job), total=total, digest=digest)


def found(connection: Connection, plan_id: int, *, is_locked: bool = False) -> Row[Any] | None:
    """Return a plan, or None if it does not exist. With ``is_locked``, lock the row, so that the caller can change
    it.
    """
    is_expired = (PLANS.c.expires_at <= func.clock_timestamp()).label("is_expired")
    query = select(PLANS, is_expired).where(PLANS.c.id == plan_id)
    return connection.execute(query.with_for_update() if is_locked else query).one_or_none()


def by_digest(connection: Connection, action: str, digest: str) -> int | None:
    """Return the newest plan of ``action`` with this digest."""
    query = select(PLANS.c.id).where(PLANS.c.action == action, PLANS.c.digest == digest).order_by(PLANS.c.id.desc())
    return connection.execute(query.limit(1)).scalar_one_or_none()


def listed(connection: Connection, *, limit: int, before: int | None) -> list[Row[Any]]:
    """Return the newest plans that were confirmed, the newest first. With ``before``, return only plans with smaller
    ids.
    """
    query = select(PLANS).where(PLANS.c.confirmed_at.is_not(None)).order_by(PLANS.c.id.desc()).limit(limit)
    return list(connection.execute(query if before is None else query.where(PLANS.c.id < before)).all())


def change(connection: Connection, plan_id: int, **values: Any) -> Row[Any]:
    """Change columns of a plan. Return the plan."""
    statement = update(OperationRow).where(PLANS.c.id == plan_id).values(**values)
    return connection.execute(statement.returning(PLANS)).one()


def items(connection: Connection, plan_id: int, position: int, most: int) -> list[Item]:
    """Return up to ``most`` items, beginning at ``position``. All returned items are in one row of items."""
    chunk, offset = divmod(position, CHUNK)
    parameters = {"id": plan_id, "chunk": chunk, "first": offset + 1, "last": min(offset + most, CHUNK)}
    row = connection.execute(ITEMS_OF, parameters).one_or_none()
    if row is None:
        return []
    runs = [Item(*each) for each in zip(row.ids, row.versions, strict=True)]
    return runs or [Item(None, None, place) for place in row.places]


def leave_out(connection: Connection, plan_id: int, position: int, left_out: Mapping[str, str]) -> None:
    """Record which items of the row at ``position`` were left out, each with its reason."""
    if left_out:
        names, reasons = list(left_out), list(left_out.values())
        connection.execute(
            LEAVE_OUT, {"id": plan_id, "chunk": position // CHUNK, "items": names, "reasons": reasons}
        )  # fmt: skip


def left_out(connection: Connection, plan_id: int) -> dict[str, int]:
    """Return the number of items that were left out, by reason."""
    return {row.reason: row.items for row in connection.execute(LEFT_OUT, {"id": plan_id})}


def left_out_of(connection: Connection, plan_id: int, chunk: int) -> Row[Any] | None:
    """Return the first row of items, from ``chunk`` on, that has items which were left out."""
    has_left_out = ITEMS.c.operation_id == plan_id, ITEMS.c.chunk >= chunk, func.cardinality(ITEMS.c.left_out) > 0
    return connection.execute(select(ITEMS).where(*has_left_out).order_by(ITEMS.c.chunk).limit(1)).one_or_none()


def lock_runs(connection: Connection, run_ids: Sequence[int]) -> dict[int, Row[Any]]:
    """Lock these runs in the order of their ids. Return their jobs, states, reasons and versions."""
    return {row.id: row for row in connection.execute(LOCKED, {"ids": list(run_ids)})}


def discard(connection: Connection, plan_id: int) -> None:
    """Delete a plan."""
    connection.execute(delete(OperationRow).where(PLANS.c.id == plan_id))
