"""Finds the ids of the runs that were requested at about a time, since the requests of a job have no index by time.

Ids rise with the time of the request, but for runs that were inserted at about the same time. So a binary search over
the ids reads a few rows, however long the history is, and a margin covers the runs that are not in order.
"""

from datetime import datetime

from sqlalchemy import Connection, text

#: Ids are not quite in the order of time: up to this many ids on each side of a place may belong to the span too.
MARGIN = 10_000

SEARCH = text("""
    WITH RECURSIVE search AS (
        SELECT coalesce(min(id), 0) AS low, coalesce(max(id), 0) + 1 AS high FROM rota_runs
        UNION ALL
        SELECT CASE WHEN is_before THEN middle ELSE low END, CASE WHEN is_before THEN high ELSE middle END
        FROM search, LATERAL (SELECT (low + high) / 2 AS middle) AS place, LATERAL (
            SELECT coalesce((SELECT queued_at FROM rota_runs WHERE id >= middle ORDER BY id LIMIT 1) < :instant, false)
                AS is_before) AS compared
        WHERE high - low > :margin
    )
    SELECT max(low) AS low, min(high) AS high FROM search
""")


def between(connection: Connection, after: datetime, before: datetime) -> tuple[int, int]:
    """Return two ids. The runs that were requested with ``after`` <= queued_at < ``before`` have ids between them."""
    low = connection.execute(SEARCH, {"instant": after, "margin": MARGIN}).one().low
    return low - MARGIN, until(connection, before)


def until(connection: Connection, before: datetime) -> int:
    """Return an id that is greater than the ids of all runs that were requested before an instant."""
    return int(connection.execute(SEARCH, {"instant": before, "margin": MARGIN}).one().high) + MARGIN
