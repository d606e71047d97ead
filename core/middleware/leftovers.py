"""Detects changes that a run leaves in its process, and undoes or logs them; see ``core/worker/process_state.py``.

Several runs share a process. A change that is noticed at the end of one run may have been made by another run, which
may undo the change before it ends. So the runs that are working when a change is noticed are suspects. The change
counts as left behind only if it still exists when all suspects have ended.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core import forks
from core.middleware.execution import Execution, Layer, Proceed
from core.observability.events import ProcessStateKept, ProcessStatePutBack, emit
from core.worker import process_state
from core.worker.process_state import Kind


@dataclass(slots=True)
class Change:
    """A change of the process's state."""

    value: Any
    #: The runs that may have made the change.
    suspects: set[Execution]

    @property
    def jobs(self) -> str:
        """The names of the suspects' jobs."""
        return ", ".join(sorted({each.job.name for each in self.suspects}))


class Leftovers(Layer):
    """Checks after each run whether the process is still in the state that it had before the first run."""

    def __init__(self) -> None:
        self._at_work: set[Execution] = set()
        self._kinds: tuple[Kind, ...] = ()
        self._reads: tuple[Callable[[], Any], ...] = ()
        self._before: list[Any] = []
        self._changes: dict[str, Change] = {}
        self._said: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers. Then check the process's state, unless this process does not belong to Rota."""
        if not forks.is_working():
            return proceed(execution)
        if not self._before:
            self._begin()
        self._at_work.add(execution)
        try:
            return proceed(execution)
        finally:
            self._at_work.discard(execution)
            if self._read() != self._before or self._changes:
                self._attend(execution)

    def _begin(self) -> None:
        with self._lock:
            if not self._before:
                self._kinds = process_state.kinds()
                self._reads = tuple(kind.read for kind in self._kinds)
                self._before = self._read()

    def _read(self) -> list[Any]:
        return [read() for read in self._reads]

    def _attend(self, execution: Execution) -> None:
        with self._lock:
            for place, (kind, now) in enumerate(zip(self._kinds, self._read(), strict=True)):
                if now == self._before[place]:
                    self._changes.pop(kind.name, None)
                elif self._is_left_behind(kind, now, execution):
                    self._settle(place, kind, self._changes.pop(kind.name))

    def _is_left_behind(self, kind: Kind, now: Any, execution: Execution) -> bool:
        change = self._changes.get(kind.name)
        if change is None or change.value != now:
            change = self._changes[kind.name] = Change(now, {execution, *self._at_work})
        return change.suspects.isdisjoint(self._at_work)

    def _settle(self, place: int, kind: Kind, change: Change) -> None:
        before, jobs = self._before[place], change.jobs if kind.is_current else "a job"
        what = kind.tell(before, change.value) if kind.tell else kind.name
        if kind.put_back is not None:
            kind.put_back(before)
        self._before[place] = kind.read()
        said = {(what, each.job.name) for each in change.suspects}
        if what and not said <= self._said:
            self._said |= said
            emit(ProcessStatePutBack(jobs, what) if kind.put_back else ProcessStateKept(jobs, what))
