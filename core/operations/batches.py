"""Changes many runs in batches.

Each batch is its own transaction with its part of the audit. So an interruption leaves whole batches, and the number of
changed runs is known.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine

from core.ledger import audit
from core.ledger.audit import Actor


@dataclass(slots=True)
class Batches:
    """The transactions of one operation, which share one entry in the audit."""

    engine: Engine
    actor: Actor
    action: audit.Action
    target: str
    details: dict[str, Any] = field(default_factory=dict)
    #: How many runs have been changed.
    done: int = 0
    _entry: int | None = None

    def do(self, act: Callable[[Connection], int]) -> int:
        """Run ``act`` as one batch; return how many runs it changed."""
        with self.engine.begin() as connection:
            count = act(connection)
            entry = self._account(connection, count)
        self._entry, self.done = entry, self.done + count
        return count

    def _account(self, connection: Connection, count: int) -> int | None:
        if count and self._entry is None:
            return audit.record(connection, self.actor, self.action, self.target, runs=count, **self.details)
        if count and self._entry is not None:
            audit.amend(connection, self._entry, runs=self.done + count)
        return self._entry
