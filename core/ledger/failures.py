"""Reads the newest dead runs, which the caller groups by their errors."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

#: The newest dead runs, from an index that has only dead runs. A long error is cut, since its beginning is enough to
#: compare it.
NEWEST = text("""
    SELECT id, job, reason, left(error, 2000) AS error, finished_at FROM (
        SELECT * FROM rota_runs WHERE state = 'dead' ORDER BY id DESC LIMIT :most
    ) AS dead
    WHERE finished_at >= :since AND coalesce(reason, '') NOT IN ('dropped', 'cancelled')
      AND (CAST(:jobs AS text[]) IS NULL OR job = ANY(CAST(:jobs AS text[])))
    ORDER BY id DESC
""")


def newest(connection: Connection, *, since: datetime, jobs: Collection[str] | None, most: int) -> list[Row[Any]]:
    """Return which of the ``most`` newest dead runs ended after ``since``, the newest first."""
    asked = {"since": since, "jobs": None if jobs is None else sorted(jobs), "most": most}
    return list(connection.execute(NEWEST, asked).all())
