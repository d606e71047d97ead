"""Real ``rota worker`` processes: the supervisor, its workers, and all processes that these have started."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from tests.support.eventually import eventually
from tests.support.fleet import BOOT_SECONDS, Fleet, pid_of


class Supervised:
    """One ``rota worker`` of a fleet."""

    def __init__(self, fleet: Fleet, process: subprocess.Popen[bytes]) -> None:
        self.fleet = fleet
        self.process = process
        self._seen: set[psutil.Process] = set()

    def processes(self) -> list[psutil.Process]:
        """Return all its live processes, with the supervisor. It remembers every process that it has ever seen."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            self._seen |= {root, *root.children(recursive=True)}
        return [process for process in self._seen if is_alive(process)]

    def workers(self) -> list[Any]:
        """Return its worker processes from the ledger, the oldest first."""
        pids = {process.pid for process in self.processes()}
        return sorted((row for row in self.fleet.registered("worker") if pid_of(row) in pids), key=lambda row: row.id)

    def pids(self) -> list[int]:
        """Return the pids of its worker processes."""
        return [pid_of(row) for row in self.workers()]

    def wait_for(self, count: int) -> "Supervised":
        """Wait until ``count`` workers are registered."""
        eventually(lambda: len(self.workers()) == count, within=BOOT_SECONDS)
        return self

    def terminate(self, *, within: float = 40) -> int:
        """Stop it gracefully. Return its exit status when none of its processes is left."""
        self.processes()
        self.process.terminate()
        status = self.process.wait(within)
        eventually(lambda: not self.processes())
        return status

    def end(self) -> None:
        """Kill all its processes."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process is alive. A zombie whose parent never waits for it counts as dead."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextmanager
def supervised(
    fleet: Fleet, *options: str, processes: int | None = None, threads: int = 8, **environ: str
) -> Iterator[Supervised]:
    """Yield a ``rota worker`` whose processes are all registered. End it afterwards."""
    size = [*([] if processes is None else ["--processes", str(processes)]), "--threads", str(threads)]
    started = Supervised(fleet, fleet.start("rota", "worker", *size, *options, **environ))
    try:
        yield started.wait_for(processes or 1)
    finally:
        started.end()
