"""Functions for a plugin's commands: a session for one command, and listings for people and programs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session


@contextmanager
def command_session() -> Iterator[Session]:
    """Yield a session for one command of a plugin, on the database of DATABASE_URL or of ``rota up`` in this folder.

    The session is one transaction, which is committed at the end of the block and rolled back if the block raises an
    error. If PostgreSQL cannot be reached or is not migrated, the command prints one line that says what to do.
    """
    from core.cli.environment import ledger

    with ledger() as engine, Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """Print ``rows`` as ``rota`` prints a listing: as a table of ``columns``, or as JSON with the whole rows.

    If there are no rows, print the sentence ``empty`` instead of the table. Times are shown in the time zone of this
    machine.
    """
    import json

    from core.cli.output import write
    from core.cli.tables import Column, print_table

    if as_json:
        write(json.dumps([*map(dict, rows)], indent=2, ensure_ascii=False, default=_as_json))
        return
    headings = [Column(name.replace("_", " "), rank=rank) for rank, name in enumerate(columns)]
    print_table(headings, [[_as_text(row[name]) for name in columns] for row in rows], empty=empty)


def _as_json(value: Any) -> str:
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def _as_text(value: Any) -> str:
    from datetime import datetime

    from core.operations.wording import local

    if isinstance(value, datetime):
        return local(value)
    return "" if value is None else str(value)
