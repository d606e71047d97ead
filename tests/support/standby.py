"""A streaming standby of an embedded PostgreSQL, which a test can promote when the primary is dead."""

from pathlib import Path

from sqlalchemy import create_engine

from core.database import normalise_url
from core.embedded import EmbeddedPostgres
from core.embedded.postgres import POSTGRES_PORT, SUPERUSER
from core.embedded.server import end_of
from tests.support.eventually import eventually

#: Every commit waits for the standby, unless its transaction has set otherwise.
SYNCHRONOUS = "ALTER SYSTEM SET synchronous_standby_names = '*'"
IS_SYNCHRONOUS = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"


class Standby(EmbeddedPostgres):
    """A standby of ``primary``. Each later commit of the primary returns only after the standby has its data."""

    def __init__(self, folder: Path, primary: EmbeddedPostgres) -> None:
        super().__init__(folder)
        self._primary = primary

    def start(self) -> None:
        """Copy the primary, start, and wait until the primary's commits wait for this server."""
        super().start()
        statements(self._primary, SYNCHRONOUS, "SELECT pg_reload_conf()")
        eventually(lambda: statements(self._primary, IS_SYNCHRONOUS) == 1, within=20)

    def promote(self) -> None:
        """Become a primary, and return when it accepts writes."""
        assert statements(self, "SELECT pg_promote()") is True

    def _make_cluster(self, initdb: Path) -> None:
        self._own_folder(self.data)
        source = ["-h", self._primary.socket_folder, "-p", str(POSTGRES_PORT), "-U", SUPERUSER]
        command = [str(initdb.with_name("pg_basebackup")), "-D", str(self.data), "-R", "-c", "fast", *map(str, source)]
        assert end_of(self._launch(command)) == 0, self.log_file.read_text()


def either(*servers: EmbeddedPostgres) -> str:
    """Return a URL that leads to the server that accepts writes:
    https://www.postgresql.org/docs/16/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS.
    """
    hosts = "&".join(f"host={server.socket_folder}:{POSTGRES_PORT}" for server in servers)
    return f"postgresql://{SUPERUSER}@/rota?{hosts}&target_session_attrs=read-write"


def statements(server: EmbeddedPostgres, *texts: str) -> object:
    """Execute statements as superuser, each in its own transaction. Return the first value of the last statement."""
    engine = create_engine(normalise_url(server.url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        results = [connection.exec_driver_sql(each) for each in texts]
        value = results[-1].scalar() if results[-1].returns_rows else None
    engine.dispose()
    return value
