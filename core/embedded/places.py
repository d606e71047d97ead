"""The folders of data and programs for servers that root starts. These servers run as another account.

That account may not be able to enter a folder above the project, such as root's home. Rota does not change the modes of
existing folders. Data and programs that the account cannot reach are put into ``/var/lib/rota`` instead.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from core.embedded.accounts import Account, may_reach
from core.errors import EmbeddedServerError

ROOTS_PLACE = Path("/var/lib/rota")
#: An account that owns nothing and is in no group.
ANYBODY = Account(-1, -1)


def of_data(folder: Path, name: str) -> Path:
    """Return the path of the data ``name``: in ``folder``, or in ``/var/lib/rota`` if the server's account cannot reach
    it.
    """
    inside = folder / name
    if os.geteuid() != 0 or inside.exists() or may_reach(inside, ANYBODY):
        return inside
    return ROOTS_PLACE / sha256(os.fsencode(folder)).hexdigest()[:16] / name


def require(path: Path, account: Account) -> None:
    """Raise EmbeddedServerError if ``account`` cannot reach ``path``."""
    if not may_reach(path, account):
        raise EmbeddedServerError(
            f"the server runs as user {account.uid}, who cannot reach {path}, since one of the folders above it is "
            "closed to this user; move it elsewhere, or start as a normal user"
        )


def make(folder: Path) -> None:
    """Make ``folder`` and its parents, if they are missing. Raises OSError.

    If root makes a folder, other users can enter it, since the server runs as another user.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        for each in missing:
            each.chmod(0o711)


def of_program(binary: Path, root: Path, parts: Sequence[str], account: Account) -> Path:
    """Return a program that ``account`` can reach: ``binary``, or a copy of it with the ``parts`` of ``root`` that it
    needs.

    Raises OSError if the program cannot be copied.
    """
    if may_reach(binary, account):
        return binary
    version = sha256(f"{binary} {binary.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    place = ROOTS_PLACE / "programs" / version
    if not place.exists():
        make(place.parent)
        unfinished = Path(tempfile.mkdtemp(dir=place.parent))
        for part in parts:
            copy(root / part, unfinished / part)
        open_to_all(unfinished)
        with suppress(OSError):  # another process made it first
            unfinished.rename(place)
        shutil.rmtree(unfinished, ignore_errors=True)
    return place / binary.relative_to(root)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with its content. Do nothing if it does not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    elif source.exists():
        shutil.copy2(source, target)


def open_to_all(copied: Path) -> None:
    """Let every account read and run the copied files."""
    for each in (copied, *copied.rglob("*")):
        if not each.is_symlink():
            each.chmod(0o755 if each.stat().st_mode & stat.S_IXUSR else 0o644)


@contextmanager
def temporary_folder(prefix: str = "rota-") -> Iterator[Path]:
    """Yield a new folder that a server's account can enter, for temporary servers. It is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder
