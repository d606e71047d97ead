"""The private folder in which the processes of a worker share their metrics.

All users can write to the system's temporary folder. So Rota puts its files there into one folder per user, which no
other user can enter. This is checked before the folder is used. If the folder cannot be used, the processes work
without shared metrics.
"""

import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

#: The name of a parent process's folder: its process id and its start time.
OF_PARENT = re.compile(r"([0-9]{1,9})-([0-9]+)")


def of_parent(parent: int) -> Path:
    """Return the folder of one parent process, and remove the folders of parents that have ended.

    Raises OSError if the folder cannot be created, or if another user has created it.
    """
    ours = private(Path(tempfile.gettempdir()) / f"rota-metrics-{os.geteuid()}")
    for stale in ours.iterdir():
        named = OF_PARENT.fullmatch(stale.name)
        if named and not is_alive(int(named[1])):
            shutil.rmtree(stale, ignore_errors=True)
    return private(ours / f"{parent}-{started_at(parent)}")


def private(folder: Path) -> Path:
    """Create ``folder`` if it is missing. Raises OSError unless this user owns it and no other user can enter it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # does not follow a link
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user; remove it, or set ROTA_METRICS_DIR")
    return folder


def is_alive(pid: int) -> bool:
    """Return whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def started_at(pid: int) -> str:
    """Return the process's start time in ticks, on Linux. It distinguishes two processes with the same id."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"
