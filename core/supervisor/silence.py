"""Finds a worker that must be killed, since it has not said ``alive`` for too long: it hangs, or a signal stopped it.

A worker says ``alive`` every second. Silence is counted in checks of this process, not by the clock. So if the machine
or this process stood still, that time counts as one check. A process that a debugger has stopped is not killed. When a
worker is found, the silence of all workers is counted from 0 again. Otherwise all workers would be killed if they were
silent for the same cause, although a restart does not remove that cause.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import psutil

from core.supervisor.replacement import Worker

#: The time between two checks, in seconds.
LOOK_SECONDS = 1.0
#: A worker may be silent for this many seconds longer than its lease.
MARGIN_SECONDS = 5.0
#: A worker may take this many seconds until it says ``alive`` for the first time, since it first imports all plugins.
FIRST_WORD_SECONDS = 300.0


@dataclass(slots=True)
class Silence:
    """How long each worker has been silent, by its name on the channel."""

    looked_at: float
    _seconds: dict[str, float] = field(default_factory=dict)
    _has_spoken: set[str] = field(default_factory=set)

    def heard(self, alias: str) -> None:
        """Remember that this worker has just said something."""
        self._seconds[alias] = 0.0
        self._has_spoken.add(alias)

    def look(self, workers: Iterable[Worker], now: float) -> Worker | None:
        """Count the time since the last check. Return a worker that was silent for too long, if there is one."""
        passed, self.looked_at = min(now - self.looked_at, LOOK_SECONDS), now
        running = {worker.alias: worker for worker in workers if worker.is_running()}
        self._has_spoken &= running.keys()
        self._seconds = {alias: self._seconds.get(alias, 0.0) + passed for alias in running}
        for alias, worker in running.items():
            bound = worker.silence_seconds if alias in self._has_spoken else FIRST_WORD_SECONDS
            if self._seconds[alias] > bound:
                self._seconds = {}
                if not is_held_by_debugger(worker.pid):
                    return worker
        return None


def is_held_by_debugger(pid: int | None) -> bool:
    """Return whether a debugger has stopped the process or one of its children."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
        return any(each.status() == psutil.STATUS_TRACING_STOP for each in family)
    except psutil.Error:
        return False
