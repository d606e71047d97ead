"""A database for all tests of a plugin, which is emptied after each test: a new database for each takes much longer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from core import database
from core.testing import create_database, drop_database


@contextmanager
def created(template: str, name: str) -> Iterator[str]:
    """Yield the URL of a new copy of the database ``template``."""
    yield create_database(template, name, template=True)
    drop_database(template, name)


@contextmanager
def emptied(url: str, tables: Sequence[str]) -> Iterator[str]:
    """Yield ``url``, and empty ``tables`` afterwards."""
    yield url
    engine = database.connect(url)
    with database.autocommit(engine) as connection:
        connection.exec_driver_sql(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")
    database.dispose(engine)
