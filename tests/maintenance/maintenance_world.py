"""Makes tasks, items, experts and uploads for the tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from plugins.maintenance.models import (
    ExpertInquiry,
    FleaMarketImage,
    FleaMarketItem,
    Review,
    Task,
    TaskExpert,
    TaskFile,
    TimeSlot,
)
from plugins.maintenance.upload_mark import MARK
from plugins.maintenance.upload_root import opened

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
A_MOMENT = timedelta(microseconds=1)
HERE = {"completed": "completed_at", "cancelled": "cancelled_at"}


def ignore(progress=None):
    """A checkpoint that does nothing."""


@dataclass
class World:
    """Makes rows and files with one call each. Every method commits."""

    session: Session
    root: Path
    checkpoints: list[dict[str, int]] = field(default_factory=list)

    def checkpoint(self, progress: dict[str, int] | None = None) -> None:
        self.checkpoints.append(dict(progress or {}))
        self.session.commit()

    def add(self, model, **values):
        """Insert a row. Return its primary key, or the first part of it."""
        key = self.session.execute(insert(model).values(**values)).inserted_primary_key[0]
        self.session.commit()
        return key

    def task(self, state="open", at=NOON, **values) -> int:
        """Return a task, which was completed or cancelled at that time, if given."""
        times = {HERE[state]: at} if state in HERE else {}
        return self.add(Task, state=state, **{"poster_id": "ann", **times, **values})

    def file(self, task_id: int, name: str = "photo.jpg", *, parent: str = "public/images/public") -> Path:
        """Write a file of a task, and its row."""
        path = f"{parent}/{task_id}/{name}"
        self.add(TaskFile, task_id=task_id, path=os.fsencode(path))
        return self.write(path)

    def item(self, refreshed_at=NOON, *images: str, **values) -> int:
        item_id = self.add(FleaMarketItem, seller_id="ann", refreshed_at=refreshed_at, **values)
        for image in images:
            path = f"flea_market/{item_id}/{image}"
            self.add(FleaMarketImage, item_id=item_id, path=os.fsencode(path))
            self.write(path)
        return item_id

    def slot(self, ends_at=NOON) -> int:
        return self.add(TimeSlot, expert_id="zoe", starts_at=ends_at - timedelta(hours=1), ends_at=ends_at)

    def review(self, task_id: int, user_id: str, rating: int) -> int:
        return self.add(Review, task_id=task_id, user_id=user_id, rating=rating)

    def expert(self, expert_id="zoe", *, is_featured=True, **values) -> str:
        return self.add(TaskExpert, id=expert_id, name=expert_id.title(), is_featured=is_featured, **values)

    def inquiry(self, expert_id: str, asked_at=NOON, answered_at=None) -> int:
        return self.add(ExpertInquiry, expert_id=expert_id, asked_at=asked_at, answered_at=answered_at)

    def write(self, path: str, *, modified_at: datetime | None = None) -> Path:
        """Write a file below the upload root."""
        made = self.root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(b"x")
        if modified_at is not None:
            age(made, modified_at)
        return made

    @contextmanager
    def opened(self) -> Iterator[int]:
        with opened(self.root) as root:
            yield root

    def count(self, model, *where) -> int:
        self.session.rollback()
        return self.session.scalar(select(func.count()).select_from(model).where(*where))

    def get(self, model, key):
        self.session.rollback()
        self.session.expire_all()
        return self.session.get(model, key)

    def files(self) -> set[str]:
        """Return every file and link below the root except the mark."""
        found = {
            str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_symlink() or path.is_file()
        }
        return found - {MARK}


def age(path: Path, modified_at: datetime) -> None:
    """Set the time at which the file was last modified."""
    nanoseconds = (modified_at - datetime(1970, 1, 1, tzinfo=UTC)) // A_MOMENT * 1000
    os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)


class Crash(BaseException):
    """The end of the process, as an exception that no code catches."""


def crash_at(monkeypatch, number: int, *places) -> list[str]:
    """Make the process crash at one of the calls of these functions. Return the list of all calls, which grows with
    each.

    The call is the one with the index ``number // 2``. If ``number`` is odd, the call has its effect before the crash.
    ``places`` are pairs of an object and the name of its function.
    """
    calls: list[str] = []

    def replaced(name, function):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) - 1 == number // 2:
                if number % 2:
                    function(*args, **kwargs)
                raise Crash
            return function(*args, **kwargs)

        return call

    for place, name in places:
        monkeypatch.setattr(place, name, replaced(name, getattr(place, name)))
    return calls
