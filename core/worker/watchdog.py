"""Ends a process that a job blocks, because it called into C and does not release the interpreter.

All threads of such a process wait, so it can neither enforce a time limit nor renew a lease. Therefore a second
process, which needs only the standard library, waits for regular beats from its parent. It checks for a beat several
times per lease. If it finds no beat for as many checks in a row as fit into a lease, it kills its parent. The parent's
leases have expired by then. The second process counts checks and not time, so that it does not kill a process because
the machine slept or the process was stopped.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

#: A process is killed after this many checks without a beat. Together they last as long as a lease.
BEATS = 5
#: The listening process has this many seconds to notice that it must end.
LEAVE_SECONDS = 5.0


class Watchdog(threading.Thread):
    """Sends regular beats to a second process, which it starts."""

    def __init__(self, silence_seconds: float) -> None:
        super().__init__(name="rota-watchdog", daemon=True)
        self._stopping = threading.Event()
        self._beat_seconds = silence_seconds / BEATS
        self._listener: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process that listens, and begin to send beats. Raises OSError if the process cannot be started."""
        from core import forks  # imported here, since the listening process has only the standard library

        command = [sys.executable, "-I", "-S", __file__, str(self._beat_seconds)]
        self._listener = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert self._listener.stdin is not None
        forks.keep_from_children(self._listener.stdin)
        super().start()

    def run(self) -> None:
        """Send beats until stopped."""
        assert self._listener is not None
        assert self._listener.stdin is not None
        pipe = self._listener.stdin.fileno()
        os.set_blocking(pipe, False)
        while not self._stopping.wait(self._beat_seconds):
            with suppress(OSError):  # the listening process has ended, or is stopped
                os.write(pipe, b".")

    def stop(self) -> None:
        """End the process that listens, if there is one."""
        self._stopping.set()
        if self._listener is None:
            return
        if self.is_alive():
            self.join(LEAVE_SECONDS)  # so that the thread does not write to the number of the closed pipe
        assert self._listener.stdin is not None
        with suppress(OSError):
            self._listener.stdin.close()
        try:
            self._listener.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._listener.kill()
            self._listener.wait()


def listen(beat_seconds: float) -> None:
    """Listen to the parent until it closes the pipe, or kill it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent handles these
        signal.signal(number, signal.SIG_IGN)
    parent, silent_looks = os.getppid(), 0
    while silent_looks < BEATS:
        readable, _, _ = select.select([0], [], [], beat_seconds)
        if readable and not os.read(0, 4096):
            return
        silent_looks = 0 if readable or is_stopped(parent) else silent_looks + 1
    if os.getppid() == parent:  # otherwise the parent has ended, and another process may have its number
        silence = f"{BEATS * beat_seconds:g} s"
        words = f"rota: killed process {parent}, which was silent for {silence}: a job in it does not let others run"
        print(words, file=sys.stderr, flush=True)  # noqa: T201 — this process has no logging
        os.kill(parent, signal.SIGKILL)


def is_stopped(pid: int) -> bool:
    """Return whether the process is stopped, as by SIGSTOP."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.startswith("T")


if __name__ == "__main__":
    listen(float(sys.argv[1]))
