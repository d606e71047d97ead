"""``Violation``: something in a history that must not be, and ``Check``, which finds such things."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.faults.history import FaultEvent, History


@dataclass(frozen=True)
class Violation:
    """Something that must not be."""

    invariant: str
    kind: str
    message: str
    run_id: int | None = None
    fault: FaultEvent | None = None

    def __str__(self) -> str:
        return f"{self.invariant} {self.kind}: {self.message}"


Check = Callable[[History], Iterator[Violation]]
