"""A connection to the ledger for one question or deed, and what an error of PostgreSQL means."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Engine, event

from core import database
from core.settings import Settings


@contextmanager
def ledger(configured: Settings, application: str, statement_timeout_seconds: float) -> Iterator[Engine]:
    """An engine on the ledger, closed afterwards; 0: its statements may take as long as they need.

    ``application`` is the name under which PostgreSQL lists its connections.
    """
    engine = database.connect(configured.database_url.get_secret_value(), pool_size=2, application=application)

    def limit(connection: DriverConnection, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = %s", (round(statement_timeout_seconds * 1000),))
        connection.commit()

    event.listen(engine, "connect", limit)
    try:
        yield engine
    finally:
        database.dispose(engine)
