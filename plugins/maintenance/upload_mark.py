"""The mark of the upload root. It is a file that distinguishes a root without files from one that is not mounted.

A missing file is no error when a row's files are deleted. So of a volume that is not mounted each file would be
missing, and the rows would forget files that are still there. The first run that deletes files leaves the mark, unless
the root is empty while rows say that it has files; from then on a root without it is refused.
"""

import os

from sqlalchemy import exists, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from plugins.maintenance import bookmarks
from plugins.maintenance.errors import UploadRootError
from plugins.maintenance.upload_root import sync

MARK = ".rota-upload-root"
#: The bookmark that says that the root has been marked.
MARKED = "upload_root"
#: The names that an empty file system may contain.
NOTHING = {"lost+found"}


def require(session: Session, root: int, files: InstrumentedAttribute[bytes]) -> None:
    """Raise UploadRootError unless ``root``, an open folder, is marked, or can be marked now.

    ``files`` are the rows that say that there are files.
    """
    is_known = bookmarks.find(session, MARKED) is not None
    if not _is_marked(root):
        if is_known or (_is_empty(root) and session.scalar(select(exists(files)))):
            raise UploadRootError(
                f"names a folder without the mark {MARK!r}, so that it may be one that is not mounted;"
                " if it is the right one, create an empty file of that name in it"
            )
        os.close(os.open(MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=root))
        sync(root)
    if not is_known:  # a write would have other sweeps wait for this one
        bookmarks.put(session, MARKED, True)


def _is_marked(root: int) -> bool:
    try:
        os.stat(MARK, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_empty(root: int) -> bool:
    return set(os.listdir(root)) <= NOTHING
