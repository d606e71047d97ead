"""Reads the newest dead runs, which the caller groups by their errors."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from core.ledger.operations import IS_WITHDRAWN

#: The newest dead runs, from an index that has only runs that have not succeeded. A long error is cut, since its
#: beginning is enough to compare it.
NEWEST = text(f"""
    SELECT id, job, reason, left(error, 2000) AS error, finished_at FROM rota_runs
    WHERE state = 'dead' AND finished_at >= :since AND NOT {IS_WITHDRAWN}
      AND (CAST(:jobs AS text[]) IS NULL OR job = ANY(CAST(:jobs AS text[])))
    ORDER BY finished_at DESC, id DESC LIMIT :most
""")  # noqa: S608 — a constant
WHOLE = text("SELECT * FROM rota_runs WHERE id = ANY(:ids)")


def newest(connection: Connection, *, since: datetime, jobs: Collection[str] | None, most: int) -> list[Row[Any]]:
    """Return the newest dead runs that ended after ``since``, the newest first, at most ``most``."""
    asked = {"since": since, "jobs": None if jobs is None else sorted(jobs), "most": most}
    return list(connection.execute(NEWEST, asked).all())


def whole(connection: Connection, ids: Collection[int]) -> dict[int, Row[Any]]:
    """Return the runs of these ids that exist, by their ids."""
    return {row.id: row for row in connection.execute(WHOLE, {"ids": list(ids)})}
