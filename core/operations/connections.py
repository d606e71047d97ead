"""Connects to the ledger for one query or operation, and explains PostgreSQL's errors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from psycopg2.errors import UndefinedColumn, UndefinedTable
from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from core import database
from core.errors import LedgerError, NotMigrated
from core.schema import whereabouts
from core.settings import Settings

#: Queries of people read few rows, in the order of an index, of a history that is mostly in memory. With PostgreSQL's
#: default for the cost of a random page, it sometimes prefers to read and sort all runs of a job. JIT is off, since the
#: compilation of such a query takes longer than the query.
PLANS = "SET random_page_cost = 1.1; SET jit = off"


@contextmanager
def ledger(
    configured: Settings, application: str, statement_timeout_seconds: float, *, pool_size: int = 2
) -> Iterator[Engine]:
    """Make an engine on the ledger, and close it afterwards. A time-out of 0 means no time-out.

    ``application`` is the name under which PostgreSQL lists its connections.
    """
    engine = database.connect(configured.database_url.get_secret_value(), pool_size=pool_size, application=application)

    def limit(connection: DriverConnection, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = %s", (round(statement_timeout_seconds * 1000),))
            cursor.execute(PLANS)
        connection.commit()

    event.listen(engine, "connect", limit)
    try:
        yield engine
    finally:
        database.dispose(engine)


@contextmanager
def explained(engine: Engine, advice: str, rights: Mapping[str, str] = database.RIGHTS) -> Iterator[None]:
    """Replace PostgreSQL's errors in the block by one line that says what to do, without secrets.

    ``advice`` says where to look when the server cannot be reached. Raises HiddenLedger, NotMigrated or LedgerError.
    """
    try:
        yield
    except DBAPIError as error:
        if isinstance(error.orig, UndefinedTable | UndefinedColumn):
            with engine.connect() as connection:
                whereabouts.refuse_hidden(connection)
            raise NotMigrated("the database is not migrated: run `rota db upgrade`") from error
        # Every error that the server sends has a code. Without a code, the server was not reached.
        if isinstance(error, OperationalError) and not getattr(error.orig, "pgcode", None):
            said = f"PostgreSQL cannot be reached: {database.brief(error)}; {advice}; `rota check` says more"
            raise LedgerError(said) from error
        raise LedgerError(f"PostgreSQL refused: {database.brief(error, rights)}") from error
