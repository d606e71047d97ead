"""Checks that the tables of the jobs' subjects exist, and that each has a primary key of one column."""

from collections.abc import Iterator

from sqlalchemy import Connection

from core.jobs.registry import Registry
from core.ledger import subjects
from core.operations.checks import Check, check


def missing(connection: Connection, registry: Registry) -> Iterator[Check]:
    """Yield a check for each job whose subject can never be looked up."""
    named = {job.name: job.subject.table for job in registry if job.subject is not None}
    found = subjects.tables(connection, set(named.values())) if named else {}
    for job, table in named.items():
        if table not in found:
            said = f"table {table!r} does not exist, or is not in the search_path"
            yield check(f"subject of {job}", "wrong", said, "run `rota db upgrade`, or correct subject=")
        elif len(found[table].columns) != 1:
            said = f"table {table!r} has no primary key of one column"
            yield check(f"subject of {job}", "wrong", said, "name another table in subject=, or drop the option")
