"""Where servers that root starts have their data and programs, as they run as another account.

That account may not be able to pass through the folders above the project, root's home for one. Their modes are not
ours to change: what it cannot reach lies in ``/var/lib/rota`` instead.
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
    """Where the data ``name`` of ``folder`` is: in it, unless root is to start there what could not get there."""
    inside = folder / name
    if os.geteuid() != 0 or inside.exists() or may_reach(inside, ANYBODY):
        return inside
    return ROOTS_PLACE / sha256(os.fsencode(folder)).hexdigest()[:16] / name


def require(path: Path, account: Account) -> None:
    """Raise EmbeddedServerError if ``account`` cannot reach ``path``."""
    if not may_reach(path, account):
        raise EmbeddedServerError(
            f"user {account.uid}, whom the server runs as, cannot reach {path}: a folder above it is closed to others; "
            "move it to where it is not, or start as a normal user"
        )


def make(folder: Path) -> None:
    """Make ``folder`` and those above it, if they are missing; root's can be passed through. Raises OSError."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        for each in missing:
            each.chmod(0o711)


def of_program(binary: Path, root: Path, parts: Sequence[str], account: Account) -> Path:
    """A program that ``account`` can reach: ``binary``, or a copy of it with the ``parts`` of ``root`` that it needs.

    Raises OSError if it cannot be copied.
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
        with suppress(OSError):  # another process has been quicker
            unfinished.rename(place)
        shutil.rmtree(unfinished, ignore_errors=True)
    return place / binary.relative_to(root)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all that it has; nothing if it is not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    elif source.exists():
        shutil.copy2(source, target)


def open_to_all(copied: Path) -> None:
    """Have every account read and run what was copied."""
    for each in (copied, *copied.rglob("*")):
        if not each.is_symlink():
            each.chmod(0o755 if each.stat().st_mode & stat.S_IXUSR else 0o644)


@contextmanager
def temporary_folder(prefix: str = "rota-") -> Iterator[Path]:
    """A new folder through which a server's account can pass, for servers that do not last; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder
