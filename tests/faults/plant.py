"""``Plant``: a bug that is added on purpose, and the functions that rewrite statements of the ledger for it."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import TextClause, text

from core.ledger.prepared import Prepared

#: The environment variable that names the plants of a process.
PLANT = "FAULTS_PLANT"
#: A fault of a round: its name, its start, its member, and its duration.
Timed = tuple[str, float, int | None, float]


@dataclass(frozen=True)
class Plant:
    """A bug: the function that adds it to a process, a statement that changes the schema for it, and the expected
    violations.
    """

    name: str
    plant: Callable[[], None]
    #: The checker must find a violation of at least one of these kinds.
    found_as: frozenset[str]
    schema: str = "SELECT 1"
    #: The faults that the bug needs, if drawn faults do not show it.
    faults: tuple[Timed, ...] = ()


def rewritten(statement: Prepared, old: str, new: str) -> Prepared:
    """Return ``statement`` with ``old`` replaced. Fails if ``old`` is not in it."""
    assert old in statement.body, f"{statement.name} has changed: {old!r} is not in it"
    return Prepared(statement.name, statement.types, statement.body.replace(old, new))


def retold(statement: TextClause, old: str, new: str) -> TextClause:
    """Return a statement that is not prepared with ``old`` replaced."""
    return text(replaced(statement.text, old, new))


def replaced(statement: str, old: str, new: str) -> str:
    """Return the text of a statement with ``old`` replaced."""
    assert old in statement, f"a statement has changed: {old!r} is not in it"
    return statement.replace(old, new)
