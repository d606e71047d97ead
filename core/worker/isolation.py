"""The processes in which this worker's isolated runs are; what each of them is, ``core/worker/isolated_run.py`` tells.

Each is in a session of its own, so that nothing that kills the worker with its group takes the run for the culprit. It
does not outlive the worker all the same: it reads from a pipe whose other end only the worker holds.
"""

import subprocess
import sys
import time
from contextlib import suppress

#: How long one may take to hand back its run and to leave, in seconds.
LEAVE_SECONDS = 3.0

_at_work: set[subprocess.Popen[bytes]] = set()


def work(run_id: int) -> int:
    """Have a process of its own claim the run and work on it, wait for its end, and return its exit status."""
    command = [sys.executable, "-m", "core.worker.isolated_run", str(run_id)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        _at_work.add(process)
        try:
            return process.wait()
        finally:
            _at_work.discard(process)


def end_all() -> None:
    """Have all of them hand back their runs, and wait until they have."""
    leaving, deadline = list(_at_work), time.monotonic() + LEAVE_SECONDS
    for process in leaving:
        process.terminate()
    for process in leaving:
        with suppress(subprocess.TimeoutExpired):  # it will notice in time that this process is gone
            process.wait(max(deadline - time.monotonic(), 0))
