"""The identity of a ledger: the PostgreSQL cluster, the database in the cluster, and the schema in the database.

A promoted standby has the same ledger. A copy that was restored from a dump, or moved to another cluster, is another
ledger.
"""

from sqlalchemy import Connection, text

#: https://www.postgresql.org/docs/16/functions-info.html#FUNCTIONS-PG-CONTROL-SYSTEM: by default, every role may call
#: these functions.
MAY_ASK = text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
IDENTITY = text("""
    SELECT concat_ws('/', system_identifier, pg_database.oid, nspname)
    FROM pg_control_system(), pg_database, pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE datname = current_database() AND pg_class.oid = to_regclass('rota_runs')
""")


def of(connection: Connection) -> str | None:
    """Return the identity of the ledger.

    Return None if the ledger is not migrated, or if the role may not ask for the identity.
    """
    if not connection.execute(MAY_ASK).scalar_one():
        return None
    return connection.execute(IDENTITY).scalar_one_or_none()
