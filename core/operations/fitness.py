"""Finds problems that prevent a process from ever working with its servers. An unavailable server is not such a
problem.
"""

from collections.abc import Iterable
from contextlib import suppress

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from core.errors import UnfitServers
from core.jobs.registry import Registry
from core.ledger import identity
from core.operations import connections, postgres_fitness, redis_fitness, subjects
from core.operations.checks import Check, wrong
from core.settings import Settings

STATEMENT_TIMEOUT_SECONDS = 5


def refuse_unfit(configured: Settings) -> None:
    """Raise UnfitServers if a server has a problem that waiting does not solve."""
    problems: list[Check] = []
    with suppress(DBAPIError), connections.ledger(configured, "rota-cli", STATEMENT_TIMEOUT_SECONDS) as engine:
        problems = of_postgresql(engine)
        if not problems and (ledger := ledger_of(engine)):
            problems = wrong(redis_fitness.owned(configured, ledger))
    if problems:
        raise UnfitServers(in_words(problems))


def of_postgresql(engine: Engine) -> list[Check]:
    """Return the lasting problems with PostgreSQL. Raises SQLAlchemy's DBAPIError if it is unavailable."""
    try:
        with engine.connect() as connection:
            return wrong(postgres_fitness.never(connection, engine))
    except DBAPIError as error:
        if problem := postgres_fitness.hopeless(error):
            return [problem]
        raise


def of_subjects(engine: Engine, registry: Registry) -> list[Check]:
    """Return the jobs whose subjects can never be looked up.

    Raises SQLAlchemy's DBAPIError if PostgreSQL is unavailable.
    """
    with engine.connect() as connection:
        return list(subjects.missing(connection, registry))


def ledger_of(engine: Engine) -> str | None:
    """Return the identity of the ledger, or None if it has none yet. Raises SQLAlchemy's DBAPIError."""
    with engine.connect() as connection:
        return identity.of(connection)


def in_words(problems: Iterable[Check]) -> str:
    """Return the problems with their advice, each on a line of its own."""
    lines = [f"  {problem.name}: {problem.found}: {problem.advice}" for problem in problems]
    return "\n".join(["this process can never work with these servers:", *lines])
