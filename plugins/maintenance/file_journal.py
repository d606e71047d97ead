"""Deletes the files of a row so that the row and its files agree, even after a crash.

No transaction includes a table and a file system. So a deletion has three steps, and the row records the step:

1. **Announced.** ``…deletion_began_at`` is set and committed. Until then, every file exists. From then on, files may be
   missing, and the application shows none of them.
2. **Deleted.** The row is locked, its own folders are removed with their content, and their parent folders are synced,
   so that files do not reappear after a power cut. A missing file is not an error, since an earlier run may have
   crashed in this step.
3. **Recorded.** In the transaction that holds the lock, the row is marked or deleted. From then on, no file exists.

Every announced deletion is completed, if necessary by a later run. This holds even if the row is no longer due, since
some of its files may be deleted already. If a file or folder of a row cannot be deleted, the row stays announced, is
counted and logged, and the next run tries again. Other rows are not affected.

A row's *own folder* is named by its id, in one of the folders that its journal lists. Nothing else is deleted. If a
file row has a path outside its owner's own folders, neither the file nor its owner is deleted, and the log reports it.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from core import Checkpoint, in_batches, sweep
from plugins.maintenance import places, upload_mark
from plugins.maintenance.errors import WallError, reason
from plugins.maintenance.places import Place
from plugins.maintenance.upload_root import descended, is_plain, remove_tree, sync

log = logging.getLogger(__name__)

#: At most this many file rows are in memory at a time.
FILE_ROWS = 1000

Row = TypeVar("Row")


@dataclass(frozen=True)
class Journal:
    """A kind of row that has files: its table, its folders, and the word for it in the log."""

    #: The word for a row in logs and counts.
    noun: str
    owner_id: InstrumentedAttribute[int]
    began_at: InstrumentedAttribute[datetime | None]
    #: Whether a row is announced and has not been recorded yet.
    is_going: ColumnElement[bool]
    file_owner_id: InstrumentedAttribute[int]
    file_path: InstrumentedAttribute[bytes]
    #: The folders, below the upload root, that contain the rows' own folders.
    parents: Sequence[tuple[str, ...]]
    #: Does step 3 for these rows, after their files have been deleted.
    record: Callable[[Session, Sequence[int], datetime], None]

    @property
    def table(self) -> str:
        """The table of the rows."""
        return str(self.owner_id.class_.__tablename__)

    def is_own(self, owner_id: int, path: bytes) -> bool:
        """Return whether ``path`` is in one of the own folders of that row."""
        steps = path.split(b"/")
        return all(map(is_plain, steps)) and any(
            len(steps) > len(parent) + 1 and steps[: len(parent) + 1] == _encoded((*parent, str(owner_id)))
            for parent in self.parents
        )


@dataclass
class Deletion:
    """The deletions of one run, of one kind of row.

    ``due`` has the conditions under which rows are announced, each with the column by which the rows are ordered.
    """

    session: Session
    root: int
    journal: Journal
    due: Sequence[tuple[ColumnElement[bool], InstrumentedAttribute[Any]]]
    now: datetime
    checkpoint: Checkpoint
    batch: int
    counts: dict[str, int] = field(default_factory=dict)

    def run(self) -> dict[str, int]:
        """Announce due rows, then complete all announced deletions, batch by batch."""
        self.counts = {f"{self.journal.noun}s": 0, "files": 0, "failed": 0}
        upload_mark.require(self.session, self.root, self.journal.file_path)
        self.checkpoint(self.counts)
        with self._parents() as parents:
            for rule, oldest_first in self.due:
                due = in_batches(partial(self._lock_due, rule, oldest_first))
                self._sweep(due, lambda found: self._announce([place.id for place in found]))
            self._sweep(self._deleted(parents), self._record)
        return self.counts

    def _sweep(self, batches: Iterable[Sequence[Row]], act: Callable[[Sequence[Row]], dict[str, int]]) -> None:
        sweep(
            self.session,
            batches,
            act,
            table=self.journal.table,
            counts=self.counts,
            checkpoint=self.checkpoint,
            refused="failed",
        )

    @contextmanager
    def _parents(self) -> Iterator[list[int]]:
        with ExitStack() as stack:
            opened = [stack.enter_context(descended(self.root, names)) for names in self.journal.parents]
            yield [parent for parent in opened if parent is not None]

    def _lock_due(
        self, rule: ColumnElement[bool], oldest_first: InstrumentedAttribute[Any], last: Place | None
    ) -> list[Place]:
        journal = self.journal
        due = (
            select(*places.columns(journal.owner_id, oldest_first))
            .where(rule, journal.began_at.is_(None), places.after(last, journal.owner_id, oldest_first))
            .order_by(oldest_first, journal.owner_id)
            .limit(self.batch)
            .with_for_update(skip_locked=True)
        )
        return [Place(*row) for row in self.session.execute(due)]

    def _announce(self, owner_ids: Sequence[int]) -> dict[str, int]:
        announced = update(self.journal.owner_id.class_).where(self.journal.owner_id.in_(owner_ids))
        self.session.execute(
            announced.values({self.journal.began_at: self.now}), execution_options={"synchronize_session": False}
        )
        return {}

    def _deleted(self, parents: Sequence[int]) -> Iterator[Sequence[int]]:
        """Delete the files of the announced rows in batches. Yield the rows that have no files any more, locked."""
        for owner_ids in in_batches(self._announced):
            locked = self._lock(owner_ids)
            refused = self._refused(locked)
            gone = [one for one in locked if self._delete_files(parents, one) and one not in refused]
            for parent in parents:
                sync(parent)
            self.counts["failed"] += len(locked) - len(gone)
            yield gone

    def _announced(self, after: int | None) -> Sequence[int]:
        journal = self.journal
        going = select(journal.owner_id).where(journal.is_going).order_by(journal.owner_id).limit(self.batch)
        return self.session.scalars(going if after is None else going.where(journal.owner_id > after)).all()

    def _lock(self, owner_ids: Sequence[int]) -> Sequence[int]:
        journal = self.journal
        going = select(journal.owner_id).where(journal.owner_id.in_(owner_ids), journal.is_going)
        return self.session.scalars(going.order_by(journal.owner_id).with_for_update(skip_locked=True)).all()

    def _refused(self, owner_ids: Sequence[int]) -> set[int]:
        journal = self.journal
        files = select(journal.file_owner_id, journal.file_path).where(journal.file_owner_id.in_(owner_ids))
        rows = self.session.execute(files.execution_options(yield_per=FILE_ROWS))
        refused = {owner_id for owner_id, path in rows if not journal.is_own(owner_id, path)}
        for owner_id in sorted(refused):
            log.warning(
                "files.refused %s=%s reason=%s",
                journal.noun,
                owner_id,
                "a file row has a path outside the folders of its owner",
            )
        return refused

    def _delete_files(self, parents: Sequence[int], owner_id: int) -> bool:
        try:
            for parent in parents:
                self.counts["files"] += remove_tree(parent, str(owner_id))
        except (OSError, WallError) as error:
            log.warning("files.not_deleted %s=%s reason=%s", self.journal.noun, owner_id, reason(error))
            return False
        return True

    def _record(self, owner_ids: Sequence[int]) -> dict[str, int]:
        self.journal.record(self.session, owner_ids, self.now)
        return {f"{self.journal.noun}s": len(owner_ids)}


def _encoded(names: Sequence[str]) -> list[bytes]:
    return [os.fsencode(name) for name in names]
