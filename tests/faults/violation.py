"""``Violation``: a state in a history that is not allowed; and ``Check``, a function that finds such states."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.faults.history import FaultEvent, History


@dataclass(frozen=True)
class Violation:
    """A state in a history that is not allowed."""

    invariant: str
    kind: str
    message: str
    run_id: int | None = None
    fault: FaultEvent | None = None

    def __str__(self) -> str:
        return f"{self.invariant} {self.kind}: {self.message}"


Check = Callable[[History], Iterator[Violation]]
