"""The mark of the upload root: a file that shows that the volume is mounted, even if the root has no other files.

When a row's files are deleted, a missing file is not an error. So if the volume were not mounted, all files would seem
to be deleted, and the rows would be changed although the files still exist. The first run that deletes files creates
the mark, but refuses an empty root if there are rows that list files. Later runs refuse a root without the mark.
"""

import os

from sqlalchemy import exists, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from plugins.maintenance import bookmarks
from plugins.maintenance.errors import UploadRootError
from plugins.maintenance.upload_root import sync

MARK = ".rota-upload-root"
#: The bookmark that records that the root has been marked.
MARKED = "upload_root"
#: The names that an empty file system may contain.
NOTHING = {"lost+found"}


def require(session: Session, root: int, files: InstrumentedAttribute[bytes]) -> None:
    """Check that ``root``, an open folder, has the mark. Make the mark in the first run, if the folder may be marked.

    Raises UploadRootError if the folder has no mark and must not get one.

    ``files`` is the column with the paths of the files that should be below ``root``.
    """
    is_known = bookmarks.find(session, MARKED) is not None
    if not _is_marked(root):
        if is_known or (_is_empty(root) and session.scalar(select(exists(files)))):
            raise UploadRootError(
                f"names a folder without the mark {MARK!r}: its volume may not be mounted;"
                " if this is the right folder, create an empty file of that name in it"
            )
        os.close(os.open(MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=root))
        sync(root)
    if not is_known:  # after an update of the same row, other sweeps would wait for this transaction
        bookmarks.put(session, MARKED, True)


def _is_marked(root: int) -> bool:
    try:
        os.stat(MARK, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_empty(root: int) -> bool:
    return set(os.listdir(root)) <= NOTHING
