"""Subjects: the rows that runs are about. A run whose subject is missing before the first attempt ends as orphaned."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, text

from core.ledger import limits
from core.ledger.leases import LEASE_IS_GOOD, Lease
from core.ledger.prepared import Prepared
from core.ledger.runs import LONGEST_ERROR

#: The reason of a run whose subject is missing.
MISSING = "no subject"
#: The reason of a run whose subject could not be looked up.
UNKNOWN = "subject unknown"

#: The primary key of each table that the connection's role finds in its search path.
PRIMARY_KEYS = text("""
    SELECT wanted.name AS "table", format('%I.%I', space.nspname, class.relname) AS relation,
           array_agg(CAST(quote_ident(part.attname) AS text)) FILTER (WHERE part.attname IS NOT NULL) AS columns,
           min(format_type(part.atttypid, part.atttypmod)) AS type
    FROM unnest(CAST(:tables AS text[])) AS wanted (name)
    JOIN pg_class AS class ON class.oid = to_regclass(wanted.name)
    JOIN pg_namespace AS space ON space.oid = class.relnamespace
    LEFT JOIN pg_index AS index ON index.indrelid = class.oid AND index.indisprimary
    LEFT JOIN pg_attribute AS part ON part.attrelid = class.oid AND part.attnum = ANY(index.indkey)
    GROUP BY 1, 2
""")

#: The job's function was not called, so the attempt is not counted.
ORPHAN = Prepared(
    "rota_orphan_subject",
    ("bigint", "bigint", "bigint", "text"),
    f"""
    UPDATE rota_runs AS run
    SET state = 'orphaned', reason = '{MISSING}', error = $4, former_state = 'queued', attempt = attempt - 1,
        token = NULL, process_id = NULL, worker = NULL, started_at = NULL, sent_at = NULL,
        finished_at = clock_timestamp()
    WHERE {LEASE_IS_GOOD} RETURNING run.id
    """,  # noqa: S608 — constants
)
#: The run keeps its due time, and so its place among the runs of its key. The run counts as sent, so that the
#: dispatcher sends it again after ``ROTA_RESEND_SECONDS``, and not at once.
HAND_BACK = Prepared(
    "rota_hand_back_subject",
    ("bigint", "bigint", "bigint", "text"),
    f"""
    UPDATE rota_runs AS run
    SET state = 'queued', reason = '{UNKNOWN}', error = $4, attempt = attempt - 1, token = NULL, process_id = NULL,
        worker = NULL, started_at = NULL, sent_at = clock_timestamp()
    WHERE {LEASE_IS_GOOD} RETURNING run.id
    """,  # noqa: S608 — constants
)


@dataclass(frozen=True, slots=True)
class SubjectTable:
    """A table's name for statements, and the column and the type of its primary key, if the key is one column."""

    relation: str
    columns: tuple[str, ...]
    type: str | None

    @property
    def look_up(self) -> str:
        """Return a statement that checks whether the table has a row with the primary key ``:id``."""
        (column,) = self.columns
        return f"SELECT EXISTS (SELECT 1 FROM {self.relation} WHERE {column} = CAST(:id AS {self.type}))"  # noqa: S608


def tables(connection: Connection, names: Collection[str]) -> dict[str, SubjectTable]:
    """Return which of the tables ``names`` exist, by these names."""
    rows = connection.execute(PRIMARY_KEYS, {"tables": list(names)})
    return {row.table: SubjectTable(row.relation, tuple(row.columns or ()), row.type) for row in rows}


def exists(connection: Connection, table: SubjectTable, value: str) -> bool:
    """Return whether the table has a row with this primary key. Raises SQLAlchemy's DBAPIError."""
    return bool(connection.execute(text(table.look_up), {"id": value}).scalar_one())


def orphan(connection: Connection, lease: Lease, error: str) -> bool:
    """End a run whose subject is missing as orphaned, without an attempt. Return False if the lease is lost."""
    return _undo(ORPHAN, connection, lease, error)


def hand_back(connection: Connection, lease: Lease, error: str) -> bool:
    """Release, uncounted, a run whose subject could not be looked up. Return False if the lease is lost."""
    return _undo(HAND_BACK, connection, lease, error)


def _undo(statement: Prepared, connection: Connection, lease: Lease, error: str) -> bool:
    is_undone = bool(statement.rows(connection, lease.run_id, lease.token, lease.process_id, error[:LONGEST_ERROR]))
    if is_undone:
        limits.give_back(connection, lease)
    return is_undone
