"""Which rights on our tables and sequences the role that asks lacks, told before a job finds out."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, text

from core.jobs.registry import Registry
from core.plugins.admission import OURS
from core.schema.removal import owner_of

#: An identity column's own sequence needs no right.
LACKING = text("""
    SELECT found.relname AS name, quote_ident(found.relname) AS quoted, quote_ident(current_user) AS role, kind,
           string_agg(privilege, ', ' ORDER BY number) AS rights
    FROM pg_class AS found
    CROSS JOIN LATERAL (SELECT CASE found.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END) AS called (kind)
    CROSS JOIN LATERAL unnest(CASE kind WHEN 'SEQUENCE' THEN ARRAY['USAGE'] ELSE
        ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'] END) WITH ORDINALITY AS needed (privilege, number)
    WHERE found.relnamespace = current_schema()::regnamespace AND found.relkind IN ('r', 'p', 'S')
      AND NOT CASE kind WHEN 'SEQUENCE' THEN has_sequence_privilege(found.oid, privilege)
                        ELSE has_table_privilege(found.oid, privilege) END
      AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE objid = found.oid AND deptype = 'i' AND found.relkind = 'S')
    GROUP BY found.relname, kind ORDER BY found.relname
""")


@dataclass(frozen=True, slots=True)
class Lack:
    """What one role lacks on tables, or on sequences, of one plugin."""

    #: The plugin's name; ``core`` for the ledger.
    owner: str
    role: str
    #: ``TABLE`` or ``SEQUENCE``, the rights and the names, as GRANT has them.
    kind: str
    rights: str
    names: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """The statement that a superuser, or the owner of the tables, can mend it with."""
        return f"GRANT {self.rights} ON {self.kind} {', '.join(self.names)} TO {self.role}"


def lacking(connection: Connection, registry: Registry) -> Iterator[Lack]:
    """What the role of ``connection`` lacks of what workers need for the core and every loaded plugin."""
    owners = {OURS: "core", **{plugin.name: plugin.name for plugin in registry.plugins if plugin.state == "loaded"}}
    alike = defaultdict(list)
    for row in connection.execute(LACKING):
        if owner := owner_of(row.name, owners):
            alike[owners[owner], row.role, row.kind, row.rights].append(row.quoted)
    for key, names in sorted(alike.items()):
        yield Lack(*key, tuple(names))
