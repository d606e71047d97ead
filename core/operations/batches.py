"""Changes many runs in batches.

Each batch is a transaction of its own, which also writes the number of changed runs to the operation's entry in the
audit. Therefore the number in the audit is right even if the operation is interrupted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from psycopg2.errors import DeadlockDetected
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from core.ledger import audit
from core.ledger.audit import Actor

#: A batch is tried again this many times after a deadlock.
MOST_DEADLOCKS = 5
#: The wait before each new try. The other transaction can end meanwhile.
AGAIN_SECONDS = 0.1


@dataclass(slots=True)
class Batches:
    """The transactions of one operation, which share one entry in the audit."""

    engine: Engine
    actor: Actor
    action: audit.Action
    target: str
    details: dict[str, Any] = field(default_factory=dict)
    #: The number of runs that have been changed.
    done: int = 0
    _entry: int | None = None

    def do(self, act: Callable[[Connection], int]) -> int:
        """Run ``act`` as one batch. Return how many runs it changed.

        A cancel locks the rows of running runs. At the same time a worker process may record the end of several of
        these runs, and lock their rows in another order. If PostgreSQL ends the batch because of such a deadlock, the
        batch is tried again.
        """
        for _ in range(MOST_DEADLOCKS):
            try:
                return self._try(act)
            except DBAPIError as error:
                if not isinstance(error.orig, DeadlockDetected):
                    raise
            time.sleep(AGAIN_SECONDS)
        return self._try(act)

    def _try(self, act: Callable[[Connection], int]) -> int:
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
