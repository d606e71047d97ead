"""Doing something to many runs in batches.

Each batch is a transaction of its own with its part of the audit, so that an interruption leaves a whole number of
batches, and it is known how many runs that were.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine

from core.ledger import audit
from core.ledger.audit import Actor


@dataclass(slots=True)
class Batches:
    """The transactions of one deed, which have one entry in the audit between them."""

    engine: Engine
    actor: Actor
    action: audit.Action
    target: str
    details: dict[str, Any] = field(default_factory=dict)
    #: To how many runs it was done.
    done: int = 0
    _entry: int | None = None

    def do(self, act: Callable[[Connection], int]) -> int:
        """Do one batch; return to how many runs it was done."""
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
