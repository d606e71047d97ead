"""``Plant``: a bug that is added on purpose, and the functions that rewrite statements of the ledger for it."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import TextClause, text

from core.ledger.prepared import Prepared

#: The variable that names what a process is to plant.
PLANT = "FAULTS_PLANT"
#: A fault of a round: which, when, whom, for how long.
Timed = tuple[str, float, int | None, float]


@dataclass(frozen=True)
class Plant:
    """A bug: what it does to a process, what it does to the schema, and what the checker must say of it."""

    name: str
    plant: Callable[[], None]
    #: Kinds of violation of which at least one must be found.
    found_as: frozenset[str]
    schema: str = "SELECT 1"
    #: The faults that bring it out, if the usual ones do not.
    faults: tuple[Timed, ...] = ()


def rewritten(statement: Prepared, old: str, new: str) -> Prepared:
    """``statement`` with ``old``, which must be there, replaced."""
    assert old in statement.body, f"{statement.name} has changed: {old!r} is not in it"
    return Prepared(statement.name, statement.types, statement.body.replace(old, new))


def retold(statement: TextClause, old: str, new: str) -> TextClause:
    """The same for a statement that is not prepared."""
    return text(replaced(statement.text, old, new))


def replaced(statement: str, old: str, new: str) -> str:
    """The same for a part of a statement."""
    assert old in statement, f"a statement has changed: {old!r} is not in it"
    return statement.replace(old, new)
