"""Compares two looks at the ledger, and says what has changed between them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sqlalchemy import Engine

from core.ledger import changes
from core.ledger.changes import Look

#: A change of more runs than this does not name them.
MOST_NAMED = 100


@dataclass(frozen=True, slots=True)
class Changed:
    """A run that has changed."""

    id: int
    job: str
    state: str


@dataclass(frozen=True, slots=True)
class News:
    """What has changed: topics, and runs if these are few."""

    topics: frozenset[str] = frozenset()
    runs: tuple[Changed, ...] = ()
    #: Whether more runs than these have changed.
    is_more: bool = False

    def __bool__(self) -> bool:
        return bool(self.topics)

    def joined(self, later: "News") -> "News":
        """Return these news together with later news."""
        runs = {run.id: run for run in (*self.runs, *later.runs)}
        kept = tuple(runs.values())[-MOST_NAMED:]
        return News(self.topics | later.topics, kept, self.is_more or later.is_more or len(kept) < len(runs))


@dataclass(slots=True)
class Ledger:
    """The ledger as the last look has found it."""

    engine: Engine
    _before: Look | None = field(default=None)

    def look(self) -> News:
        """Return what has changed since the last look. The first look finds no news. Raises SQLAlchemyError."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            before = self._before
            found = changes.look(connection, before.newest if before else changes.newest(connection))
            left = [] if before is None else at_work(before) - at_work(found) - found.runs.keys()
            rows = changes.of_ids(connection, left)
            gone = [Changed(row.id, row.job, row.state) for row in rows if row.state != "running"]
        self._before = found
        return news(before, found, gone) if before is not None else News()


def at_work(look: Look) -> set[int]:
    """Return the runs that are running."""
    return {run for run, (_, state, _) in look.runs.items() if state == "running"}


def news(before: Look, now: Look, gone: Iterable[Changed]) -> News:
    """Return what has changed between two looks. ``gone`` are the runs that have left the runs at work.

    The runs that an action of a person has changed are not named.
    """
    fresh = {run: facts for run, facts in now.runs.items() if before.runs.get(run) != facts}
    runs = [*(Changed(run, job, state) for run, (job, state, _) in fresh.items()), *gone]
    has_acted = any(before.actions.get(entry, "") != done for entry, done in now.actions.items())
    topics = {*(["runs"] if runs or has_acted else []), *tables(before, now)}
    is_more = has_acted or len(runs) > MOST_NAMED or len(fresh) >= changes.MOST
    return News(frozenset(topics), tuple(runs[:MOST_NAMED]), is_more)


def tables(before: Look, now: Look) -> Iterator[str]:
    """Yield the small tables that have changed."""
    yield from (name for name, digest in now.tables.items() if before.tables.get(name) != digest)
