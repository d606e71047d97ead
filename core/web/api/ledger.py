"""Connections of routes to the ledger: a connection that only reads, and one whose changes are committed before the
answer.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy import Connection, Engine
from starlette.requests import Request

from core.jobs.registry import Registry
from core.web import service


def reading(request: Request) -> Iterator[Connection]:
    """Yield a connection on which nothing can be changed."""
    with service.of(request).engine.connect() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        yield connection


def changing(request: Request) -> Iterator[Connection]:
    """Yield a connection in a transaction, which is committed unless the route raises an error."""
    with service.of(request).engine.begin() as connection:
        yield connection


def engine(request: Request) -> Engine:
    """Return the engine, for operations that have transactions of their own."""
    return service.of(request).engine


def registry(request: Request) -> Registry:
    """Return the registry of the plugins and jobs that are loaded here."""
    return service.of(request).registry


Reading = Annotated[Connection, Depends(reading, scope="function")]
Changing = Annotated[Connection, Depends(changing, scope="function")]
Ledger = Annotated[Engine, Depends(engine)]
Jobs = Annotated[Registry, Depends(registry)]
