"""Databases of another encoding or with another ledger, beside a test's own database."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from core import database
from core.testing import drop_database

#: The options of CREATE DATABASE for an encoding. The locale must fit the encoding.
PLAIN = "LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"


@contextmanager
def encoded(engine: Engine, encoding: str) -> Iterator[str]:
    """Yield the URL of an empty database with ``encoding``, and drop the database afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    with database.autocommit(engine) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} ENCODING '{encoding}' {PLAIN}")
    try:
        yield engine.url.set(database=name).render_as_string(hide_password=False)
    finally:
        drop_database(engine.url.render_as_string(hide_password=False), name)
