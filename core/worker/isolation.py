"""Starts isolated runs in child processes; ``core/worker/isolated_run.py`` is the program of a child process.

Only one run is isolated at a time, since an isolated run may use all memory. If another run must be isolated meanwhile,
it is not started, and the dispatcher sends it again later. Therefore no thread waits for the isolated run to end.

The child has its own session, so that a signal that kills the worker's process group does not kill the child too. The
ledger would count the child's death as a crash of the run. The child ends when the worker ends: it reads from a pipe
whose other end only the worker holds.
"""

import subprocess
import sys
import threading
import time
from contextlib import suppress

from core import forks
from core.observability.events import RunIsolated, RunNotIsolatedYet, emit

#: An isolated process has this many seconds to release its run and to end.
LEAVE_SECONDS = 3.0

#: The thread of this worker that waits for its isolated process, if there is one.
threads: set[int] = set()
_turn = threading.Lock()
_at_work: set[subprocess.Popen[bytes]] = set()


def work(job: str, run_id: int) -> str:
    """Start a process that claims the run and works on it, wait for its end, and return how it ended.

    If another isolated process is working, do nothing. The dispatcher sends the run again after
    ``ROTA_RESEND_SECONDS``.
    """
    if not _turn.acquire(blocking=False):
        emit(RunNotIsolatedYet(job, run_id))
        return "to be sent again"
    threads.add(threading.get_ident())
    try:
        emit(RunIsolated(job, run_id))
        return f"ended in isolation, exit status {_status_of(run_id)}"
    finally:
        threads.discard(threading.get_ident())
        _turn.release()


def _status_of(run_id: int) -> int:
    command = [sys.executable, "-m", "core.worker.isolated_run", str(run_id)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        forks.keep_from_children(process.stdin)
        _at_work.add(process)
        try:
            return process.wait()
        finally:
            _at_work.discard(process)


def end_all() -> None:
    """Make all isolated processes release their runs, and wait for that."""
    leaving, deadline = list(_at_work), time.monotonic() + LEAVE_SECONDS
    for process in leaving:
        process.terminate()
    for process in leaving:
        with suppress(subprocess.TimeoutExpired):  # the child ends by itself when this process has ended
            process.wait(max(deadline - time.monotonic(), 0))
