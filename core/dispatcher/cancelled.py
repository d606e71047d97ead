"""Logs and counts cancelled runs. They end when their process releases them, or when they are recovered from a dead
process.
"""

from collections.abc import Sequence
from typing import TypeVar

from core.ledger.cancels import CANCELLED
from core.ledger.processes import Recovered
from core.ledger.runs import HandedBack
from core.observability import metrics
from core.observability.events import RunCancelled, emit

AnyRun = TypeVar("AnyRun", HandedBack, Recovered)


def tell(handed_back: Sequence[AnyRun]) -> list[AnyRun]:
    """Log and count the cancelled runs among ``handed_back``. Return the other runs."""
    for run in handed_back:
        if run.reason == CANCELLED:
            metrics.run_ended(run.job, CANCELLED)
            emit(RunCancelled(run.job, run.run_id, run.error or ""))
    return [run for run in handed_back if run.reason != CANCELLED]
