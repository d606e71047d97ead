"""Finds a ledger that exists but that the role cannot see: the role lacks USAGE on the ledger's schema, or its
search_path does not have the schema.
"""

from dataclasses import dataclass
from urllib.parse import quote

from sqlalchemy import Connection, text

from core.errors import HiddenLedger

#: The catalogue also lists schemas that the role may not use.
HIDDEN = text("""
    SELECT quote_ident(schema.nspname) AS name, quote_ident(current_user) AS role,
           has_schema_privilege(schema.oid, 'USAGE') AS is_usable, current_setting('search_path') AS path
    FROM pg_class AS found JOIN pg_namespace AS schema ON schema.oid = found.relnamespace
    WHERE found.relname = 'rota_runs' AND found.relkind IN ('r', 'p') AND to_regclass('rota_runs') IS NULL
    ORDER BY is_usable, schema.nspname LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class Hidden:
    """A ledger that exists but cannot be seen, and advice on what to do."""

    found: str
    remedy: str


def hidden(connection: Connection) -> Hidden | None:
    """Return the ledger that the role of ``connection`` cannot see.

    Return None if the role sees the ledger, or if there is no ledger.
    """
    row = connection.execute(HIDDEN).one_or_none()
    if row is None:
        return None
    if not row.is_usable:
        return Hidden(
            f"the tables are in the schema {row.name}, on which {row.role} lacks USAGE",
            f"GRANT USAGE ON SCHEMA {row.name} TO {row.role}",
        )
    return Hidden(
        f"the tables are in the schema {row.name}, and the search_path of {row.role} is {row.path}",
        f"ALTER ROLE {row.role} SET search_path = {row.name}, or put it into DATABASE_URL: "
        f"options={option(row.name)}; `rota db upgrade` would create a second ledger in another schema",
    )


def option(name: str) -> str:
    """Return libpq's option for the search_path ``name``, encoded for a URL. A backslash escapes spaces."""
    kept = name.replace("\\", "\\\\").replace(" ", "\\ ")
    return quote(f"-csearch_path={kept}")


def refuse_hidden(connection: Connection) -> None:
    """Raise HiddenLedger if there is a ledger that the role cannot see."""
    if unseen := hidden(connection):
        raise HiddenLedger(f"{unseen.found}: {unseen.remedy}")
