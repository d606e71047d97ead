"""Finds out which rights on Rota's tables and sequences the current role lacks, before a job fails because of it.

The purpose ``looking`` needs SELECT on the ledger's tables. The purpose ``working`` also needs rights to write, and
rights on the plugins' tables. The version tables only need SELECT, since only migrations write to them.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, text

from core.jobs.registry import Registry
from core.plugins.admission import OURS
from core.schema.owners import owner_of

Purpose = Literal["working", "looking"]

#: The query searches the ledger's schema, or the schema in which the ledger would be created. The sequence of an
#: identity column needs no right.
LACKING = text("""
    SELECT found.relname AS name, quote_ident(found.relname) AS quoted, quote_ident(current_user) AS role, kind,
           string_agg(privilege, ', ' ORDER BY number) AS rights
    FROM pg_class AS found
    CROSS JOIN LATERAL (SELECT CASE found.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END) AS called (kind)
    CROSS JOIN LATERAL unnest(CASE
        WHEN kind = 'SEQUENCE' THEN ARRAY['USAGE']
        WHEN :purpose = 'looking' OR starts_with(found.relname, 'rota_migrations_') THEN ARRAY['SELECT']
        ELSE ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'] END) WITH ORDINALITY AS needed (privilege, number)
    WHERE found.relkind IN ('r', 'p', 'S')
      AND found.relnamespace = coalesce(
        (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('rota_runs')),
        quote_ident(current_schema())::regnamespace)
      AND NOT CASE kind WHEN 'SEQUENCE' THEN has_sequence_privilege(found.oid, privilege)
                        ELSE has_table_privilege(found.oid, privilege) END
      AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE objid = found.oid AND deptype = 'i' AND found.relkind = 'S')
    GROUP BY found.relname, kind ORDER BY found.relname
""")


@dataclass(frozen=True, slots=True)
class Lack:
    """The rights that one role lacks on the tables, or on the sequences, of one plugin."""

    #: The plugin's name; ``core`` for the ledger.
    owner: str
    role: str
    #: ``TABLE`` or ``SEQUENCE``, and the rights and the names in the syntax of GRANT.
    kind: str
    rights: str
    names: tuple[str, ...]

    @property
    def each(self) -> set[tuple[str, str]]:
        """Each name with each of the rights, as pairs."""
        return {(name, right) for name in self.names for right in self.rights.split(", ")}

    @property
    def remedy(self) -> str:
        """The GRANT statement that a superuser or the owner of the tables must execute."""
        return f"GRANT {self.rights} ON {self.kind} {', '.join(self.names)} TO {self.role}"


def lacking(connection: Connection, registry: Registry, purpose: Purpose = "working") -> Iterator[Lack]:
    """Return the rights that the connection's role lacks for ``purpose`` on the tables of the core and of loaded
    plugins.
    """
    owners = {OURS: "core", **{plugin.name: plugin.name for plugin in registry.plugins if plugin.state == "loaded"}}
    alike = defaultdict(list)
    for row in connection.execute(LACKING, {"purpose": purpose}):
        owner = owners.get(owner_of(row.name, owners) or "")
        if owner and (purpose == "working" or (owner == "core" and row.kind == "TABLE")):
            alike[owner, row.role, row.kind, row.rights].append(row.quoted)
    for key, names in sorted(alike.items()):
        yield Lack(*key, tuple(names))
