"""The folder in which the processes of a worker share their metrics: private, and never a reason not to work.

A temporary folder is everybody's. What Rota makes there lies in one folder for each user, which nobody else can enter;
whether it is that, is looked at before it is used.
"""

import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

#: A folder of one parent process: its number, and when it began.
OF_PARENT = re.compile(r"([0-9]{1,9})-([0-9]+)")


def of_parent(parent: int) -> Path:
    """A folder that no other process of that number shares; those of parents that have ended are removed.

    Raises OSError if it cannot be made, or if somebody else has made it.
    """
    ours = private(Path(tempfile.gettempdir()) / f"rota-metrics-{os.geteuid()}")
    for stale in ours.iterdir():
        named = OF_PARENT.fullmatch(stale.name)
        if named and not is_alive(int(named[1])):
            shutil.rmtree(stale, ignore_errors=True)
    return private(ours / f"{parent}-{started_at(parent)}")


def private(folder: Path) -> Path:
    """Make ``folder`` if it is missing. Raises OSError unless it is a folder of ours, which nobody else can enter."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # not what a link leads to
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user; remove it, or set ROTA_METRICS_DIR")
    return folder


def is_alive(pid: int) -> bool:
    """Whether a process of that number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def started_at(pid: int) -> str:
    """What tells apart two processes that had the same number: when it began, in ticks, where Linux says so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"
