"""Deletes images that were uploaded and not used within a day, a limited number in each run.

**What is deleted.** Regular files whose names end like those of images (``IMAGES``), last modified more than 24 hours
ago, at any depth in the folders ``public/images/public/temp_*`` and ``flea_market/temp_*``. Symlinks are neither
followed nor deleted, and other files, other devices and folders not called ``temp_…`` are left alone. A
folder is removed if a run finds it empty and nothing was added to it for 24 hours. Folders above ``temp_*`` are never
removed.

**Why a run's work is bounded.** A folder may contain a million files, most of them new, and each run would read all of
them. So a run stops after a number of deletions or entries, and the next run continues at the *place* where it stopped.
The system returns a folder's entries in pages of about 1,000 (getdents64(2)). The position of a page is a number that
lseek(2) accepts later, even if the folder was opened again and has changed meanwhile: file systems keep these positions
valid, since NFS needs them. So a place is the path to the folder in which the run stopped. For each folder on the path,
the place has the name, the position of the page that was being read, and the number of processed entries of that page.
A run stops only after it has finished at least one page or folder, so it always makes progress. For each folder on the
path, it may read one page more than its limit.

**Why every image is reached.** A place need not be correct. If it is invalid, the run begins with the first folder. If
the folder in which the last run stopped no longer exists, the run continues with the next folder, and may miss some
entries of the same page. But when all folders are done, another round begins, which stops at other places.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from stat import S_ISREG
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from core import Checkpoint, require_aware
from plugins.maintenance import bookmarks
from plugins.maintenance.errors import WallError, reason
from plugins.maintenance.upload_root import DEEPEST, descended, enter, unlink

log = logging.getLogger(__name__)

#: An image is deleted when it was modified longer ago than this.
KEPT = timedelta(hours=24)
ABOVE = (("public", "images", "public"), ("flea_market",))
TEMPORARY = "temp_"
#: The endings of the names of images, in lower or upper case.
IMAGES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff", ".webp")
SWEEP = "temp_images"

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
MICROSECOND = timedelta(microseconds=1)


class Step(NamedTuple):
    """A folder on the path to a place: its name, the position of the page, and the number of processed entries."""

    name: str
    position: int = 0
    entry: int = 0


class Place(NamedTuple):
    """The position at which a run stopped: a folder of ABOVE, and the path below it."""

    above: int = 0
    steps: tuple[Step, ...] = ()


BEGINNING = Place()


def delete_old_images(
    session: Session,
    root: int,
    now: datetime,
    *,
    checkpoint: Checkpoint,
    limit: int = 1000,
    entries: int = 20_000,
    batch: int = 10_000,
) -> dict[str, int]:
    """Continue at the last place. Delete up to ``limit`` images older than 24 h, and read up to about ``entries``
    entries.

    Counts deleted images, removed empty folders, read entries, and everything that could not be deleted or read.
    """
    require_aware(now=now)
    began = _from_json(bookmarks.find(session, SWEEP))
    sweep = Sweep(session, root, now, checkpoint, limit, entries, batch, began)
    sweep.run()
    if began != BEGINNING and sweep.place == BEGINNING:  # a round ended before the run had done enough work
        sweep.start_again()
    bookmarks.put(session, SWEEP, _to_json(sweep.place))
    checkpoint(sweep.counts)
    return sweep.counts


@dataclass
class Sweep:
    """One run of the job, which goes through the folders."""

    session: Session
    root: int
    now: datetime
    checkpoint: Checkpoint
    limit: int
    entries: int
    batch: int
    place: Place
    counts: dict[str, int] = field(default_factory=lambda: {"deleted": 0, "folders": 0, "entries": 0, "failed": 0})

    def __post_init__(self) -> None:
        self.before_ns = (self.now - KEPT - EPOCH) // MICROSECOND * 1000
        self.unsaved = 0
        #: The failures of this round by folder, and the folders whose failures the previous round has counted.
        self.failures: Counter[str] = Counter()
        self.reported: set[str] = set()

    def run(self) -> None:
        """Continue from ``place`` until the end, or until the run has done enough work. At the end, reset ``place``."""
        start = self.place
        for above in range(start.above, len(ABOVE)):
            resume = start.steps if above == start.above else ()
            self.place = Place(above, resume)
            with ExitStack() as stack:
                folder = self._open(stack, ABOVE[above])
                if folder is not None and not Visit(self, folder, 0, "", resume).go_on():
                    return
        self.place = BEGINNING

    def start_again(self) -> None:
        """Start another round in the same run.

        The round does not count or log failures in folders that the previous round has logged.
        """
        self.reported, self.failures = set(self.failures), Counter()
        self.run()

    def fail(self, folder: str, error: Exception) -> None:
        """Count a failure in ``folder``, and log the first failure there."""
        if folder in self.reported:
            return
        self.counts["failed"] += 1
        self.failures[folder] += 1
        if self.failures[folder] == 1:
            log.warning("temp_images.not_deleted folder=%a reason=%s", folder, reason(error))

    def _open(self, stack: ExitStack, names: Sequence[str]) -> int | None:
        try:
            return stack.enter_context(descended(self.root, names))
        except (OSError, WallError) as error:
            self.fail("/".join(names), error)
            return None

    @property
    def has_looked_enough(self) -> bool:
        return self.counts["entries"] >= self.entries

    @property
    def has_deleted_enough(self) -> bool:
        return self.counts["deleted"] >= self.limit

    def stand(self, depth: int, step: Step) -> None:
        """Remember that the run has reached ``step``, whose folder is ``depth`` folders below the first folder."""
        self.place = Place(self.place.above, (*self.place.steps[:depth], step))

    def count_deleted(self) -> None:
        """Count a deleted image. After each batch, commit the position that the run has reached."""
        self.counts["deleted"] += 1
        self.unsaved += 1
        if self.unsaved == self.batch:
            self.unsaved = 0
            bookmarks.put(self.session, SWEEP, _to_json(self.place))
            self.checkpoint(self.counts)


@dataclass
class Visit:
    """The work of a run in one folder. ``resume`` is the path from this folder to the last place."""

    sweep: Sweep
    folder: int
    depth: int
    name: str
    resume: tuple[Step, ...]

    def go_on(self) -> bool:
        """Process the folder's entries.

        Return False if the run has done enough work; ``sweep.place`` then has its position.
        """
        here = self.resume[0] if self.resume else Step(self.name)
        sought = self.resume[1].name if len(self.resume) > 1 else None
        listing = Listing(self.folder, here.position)
        done = here.entry if sought else 0  # processed entries; inexact if folders were deleted
        self.sweep.stand(self.depth, here)
        for entry in listing:
            if listing.has_turned():
                done = 0
                self.sweep.stand(self.depth, Step(self.name, listing.page))
                if self.sweep.has_looked_enough:
                    return False
            resume = self.resume[1:] if entry.name == sought else ()
            if resume:
                done = 0
            elif listing.entry < done:
                continue
            if not self._look_at(entry, listing, resume):
                return False
        if listing.problem is not None:
            self._fail(listing.problem)
        self._report()
        return True

    def _look_at(self, entry: os.DirEntry[str], listing: "Listing", resume: tuple[Step, ...]) -> bool:
        if resume:  # the last run has counted them already
            self.sweep.stand(self.depth, Step(self.name, listing.page, listing.entry))
            return self._look_into(entry.name, resume)
        if _is_folder(entry) and (self.depth or entry.name.startswith(TEMPORARY)):
            self.sweep.stand(self.depth, Step(self.name, listing.page, listing.entry))
            if self.sweep.has_looked_enough:  # stop before the entry, since it may be deleted later
                self.sweep.stand(self.depth + 1, Step(entry.name))
                return False
            self.sweep.counts["entries"] += 1
            return self._look_into(entry.name, ())
        self.sweep.counts["entries"] += 1
        return not self.depth or self._look_at_file(entry)

    def _look_at_file(self, entry: os.DirEntry[str]) -> bool:
        if not entry.name.lower().endswith(IMAGES):
            return True
        try:
            if not self._is_old_file(entry):
                return True
            if self.sweep.has_deleted_enough:
                return False
            deleted = unlink(self.folder, entry.name)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._fail(error)
            return True
        if deleted:
            self.sweep.count_deleted()
        return True

    def _is_old_file(self, entry: os.DirEntry[str]) -> bool:
        found = entry.stat(follow_symlinks=False)
        return S_ISREG(found.st_mode) and found.st_mtime_ns < self.sweep.before_ns

    def _look_into(self, name: str, resume: tuple[Step, ...]) -> bool:
        try:
            below = enter(self.folder, name)
        except FileNotFoundError:
            return True
        except (OSError, WallError) as error:
            self._fail(error)
            return True
        try:
            found = os.fstat(below)
            if found.st_dev != os.fstat(self.folder).st_dev or self.depth == DEEPEST:
                return True
            looked_at = self.sweep.counts["entries"]
            finished = Visit(self.sweep, below, self.depth + 1, name, resume).go_on()
        finally:
            os.close(below)
        was_empty = not resume and looked_at == self.sweep.counts["entries"]
        if finished and was_empty and found.st_mtime_ns < self.sweep.before_ns:
            self._remove_empty(name)
        return finished

    def _remove_empty(self, name: str) -> None:
        with suppress(OSError):  # the folder has new entries, or was deleted
            os.rmdir(name, dir_fd=self.folder)
            self.sweep.counts["folders"] += 1

    def _fail(self, error: Exception) -> None:
        self.sweep.fail(self._way(), error)

    def _way(self) -> str:
        place = self.sweep.place
        return "/".join((*ABOVE[place.above], *(step.name for step in place.steps[1 : self.depth + 1])))

    def _report(self) -> None:
        if (failures := self.sweep.failures[self._way()]) > 1:
            log.warning("temp_images.not_deleted folder=%a entries=%s", self._way(), failures)


class Listing:
    """The entries of an open folder from a position on, and the page of the last returned entry."""

    def __init__(self, folder: int, position: int) -> None:
        self.folder = folder
        self.page = self._seek(position)
        #: The number of the last returned entry on its page, counted from 0.
        self.entry = -1
        #: The error that ended the listing early.
        self.problem: OSError | None = None
        self._turned = False

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        end: int | None = None
        try:
            with os.scandir(self.folder) as entries:  # reads from the folder's position, and moves it by whole pages
                for entry in entries:
                    position = os.lseek(self.folder, 0, os.SEEK_CUR)
                    if position != end:
                        if end is not None:
                            self.page, self._turned, self.entry = end, True, -1
                        end = position
                    self.entry += 1
                    yield entry
        except OSError as error:
            self.problem = error

    def has_turned(self) -> bool:
        """Return whether a new page has begun since the last call."""
        turned, self._turned = self._turned, False
        return turned

    def _seek(self, position: int) -> int:
        with suppress(OSError, OverflowError):
            return os.lseek(self.folder, position, os.SEEK_SET)
        return os.lseek(self.folder, 0, os.SEEK_SET)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # opening the entry as a file reports the error
        return False


def _to_json(place: Place) -> list[Any]:
    # The names of files need not be UTF-8, but JSON text must be.
    return [place.above, [[os.fsencode(step.name).hex(), step.position, step.entry] for step in place.steps]]


def _from_json(value: Any) -> Place:
    """Return the place that was stored as JSON, or ``BEGINNING`` if it is invalid."""
    try:
        above, steps = value
        if above not in range(len(ABOVE)):
            return BEGINNING
        return Place(
            above, tuple(Step(os.fsdecode(bytes.fromhex(name)), int(page), int(entry)) for name, page, entry in steps)
        )
    except (TypeError, ValueError):
        return BEGINNING
