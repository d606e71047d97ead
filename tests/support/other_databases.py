"""Databases beside a test's own, of another encoding or with another ledger."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from core import database
from core.testing import drop_database

#: What CREATE DATABASE needs beside the encoding, since a locale has its own.
PLAIN = "LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"


@contextmanager
def encoded(engine: Engine, encoding: str) -> Iterator[str]:
    """The URL of an empty database of ``encoding``, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    with database.autocommit(engine) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} ENCODING '{encoding}' {PLAIN}")
    try:
        yield engine.url.set(database=name).render_as_string(hide_password=False)
    finally:
        drop_database(engine.url.render_as_string(hide_password=False), name)
