"""Ends a process that a job blocks, because it called into C and does not release the interpreter.

All threads of such a process wait, so it can neither enforce a time limit nor renew a lease. Therefore a second
process, which needs only the standard library, waits for the regular beats of its parent. If it has had no beat for as
many checks as fit into a lease, it kills the parent, whose runs belong to other workers by then. It counts checks and
not time, so it does not kill a process only because the machine slept or the process was stopped.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

#: The number of beats in the time after which a silent process is ended.
BEATS = 5
#: The listening process has this many seconds to notice that it must end.
LEAVE_SECONDS = 5.0


class Watchdog(threading.Thread):
    """Sends this process's beat, and starts the process that listens to it."""

    def __init__(self, silence_seconds: float) -> None:
        super().__init__(name="rota-watchdog", daemon=True)
        self._stopping = threading.Event()
        self._beat_seconds = silence_seconds / BEATS
        self._listener: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process that listens, and begin to send beats. Raises OSError if the process cannot be started."""
        from core import forks  # only here: the listening process has just the standard library

        command = [sys.executable, "-I", "-S", __file__, str(self._beat_seconds)]
        self._listener = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert self._listener.stdin is not None
        forks.keep_from_children(self._listener.stdin)
        super().start()

    def run(self) -> None:
        """Tell the watching process regularly that this process is alive, until stopped."""
        assert self._listener is not None
        assert self._listener.stdin is not None
        pipe = self._listener.stdin.fileno()
        os.set_blocking(pipe, False)
        while not self._stopping.wait(self._beat_seconds):
            with suppress(OSError):  # the process has ended, or is stopped
                os.write(pipe, b".")

    def stop(self) -> None:
        """End the process that listens, if there is one."""
        self._stopping.set()
        if self._listener is None:
            return
        if self.is_alive():
            self.join(LEAVE_SECONDS)  # after the pipe is closed, its number may be reused
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
    if os.getppid() == parent:  # another process could have this number by now
        silence = f"{BEATS * beat_seconds:g} s"
        words = f"rota: process {parent} was silent for {silence}: a job in it does not let others run; killed"
        print(words, file=sys.stderr, flush=True)  # noqa: T201 — the only voice it has
        os.kill(parent, signal.SIGKILL)


def is_stopped(pid: int) -> bool:
    """Return whether the process is stopped, as by SIGSTOP."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.startswith("T")


if __name__ == "__main__":
    listen(float(sys.argv[1]))
