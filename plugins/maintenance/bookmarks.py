"""The position at which a sweep of several runs has stopped. It is committed together with the sweep's batches."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from plugins.maintenance.models import Bookmark


def find(session: Session, sweep: str) -> Any:
    """Return the position, a JSON value, at which ``sweep`` stopped, or None if there is none."""
    return session.scalar(select(Bookmark.place).where(Bookmark.sweep == sweep))


def put(session: Session, sweep: str, place: Any) -> None:
    """Store ``place``, where ``sweep`` continues, when the session commits."""
    bookmark = insert(Bookmark).values(sweep=sweep, place=place)
    session.execute(bookmark.on_conflict_do_update(index_elements=[Bookmark.sweep], set_={"place": place}))
