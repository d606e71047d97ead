"""Procrastinate, whose queue is in PostgreSQL, as Rota's ledger is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from benchmarks import meter

app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))


@app.task(name="tick")
def tick(sent_at: float = 0.0) -> None:
    """A no-op that leaves its time."""
    meter.tick(sent_at)


@contextmanager
def producing() -> Iterator[None]:
    """On one synchronous connection, with the tables made if need be."""
    with app.replace_connector(SyncPsycopgConnector(conninfo=os.environ["DATABASE_URL"])) as producer, producer.open():
        made = "SELECT to_regclass('procrastinate_jobs') IS NOT NULL AS made"
        if not producer.connector.execute_query_one(made)["made"]:
            producer.schema_manager.apply_schema()
        yield


def send(sent_at: float) -> None:
    """Queue one."""
    tick.defer(sent_at=sent_at)
