"""Ends this process if it can never work with its servers: at its start, or as soon as the servers answer.

If a server is unavailable, the process waits for the server and does not end. Redis is checked again every minute,
since another service may use the same Redis after it was emptied.
"""

import os
import signal
import sys
import threading

import redis
from sqlalchemy import Engine

from core.database import DATABASE_AWAY
from core.jobs.registry import Registry
from core.observability.events import ProcessUnfit, emit
from core.operations import fitness, redis_fitness
from core.operations.checks import Check, wrong
from core.transport.redis import ownership

#: The start of a process waits this many seconds for the servers' answers.
ANSWER_SECONDS = 2.0
#: The interval of the checks until all servers have answered.
AGAIN_SECONDS = 5.0
#: The interval of the checks of Redis when all servers have answered.
REDIS_AGAIN_SECONDS = 60.0
NO_JOBS = Registry()


class Fitness(threading.Thread):
    """Checks PostgreSQL once, and Redis every minute. Ends the process if one of them is not fit."""

    def __init__(self, engine: Engine, client: redis.Redis | None, registry: Registry = NO_JOBS) -> None:
        """``client`` must fail within about a second. It is None if this process uses no Redis.

        ``registry`` has the jobs whose subjects must have tables when the process starts.
        """
        super().__init__(name="rota-fitness", daemon=True)
        self._engine = engine
        self._client = client
        self._registry = registry
        self._has_subjects = False
        self._ledger: str | None = None
        self._problems: list[Check] | None = None
        self._has_asked = threading.Event()
        self._is_at_work = threading.Event()
        self._stopping = threading.Event()

    def refuse_unfit(self) -> None:
        """Start to check. If a server is not fit, end the process with status 1 and a clear message."""
        self.start()
        self._has_asked.wait(ANSWER_SECONDS)
        if self._problems:
            sys.exit(f"rota: {fitness.in_words(self._problems)}")
        self._is_at_work.set()

    def run(self) -> None:
        """Check until stopped."""
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = REDIS_AGAIN_SECONDS if self._ask() else AGAIN_SECONDS
            self._has_asked.set()
            if self._problems and self._is_at_work.is_set():
                emit(ProcessUnfit(fitness.in_words(self._problems)))
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def stop(self) -> None:
        """Stop checking."""
        self._stopping.set()

    def _ask(self) -> bool:
        """Return whether all servers have answered and are fit."""
        try:
            if self._problems is None:
                self._problems = fitness.of_postgresql(self._engine)
            self._ledger = self._ledger or fitness.ledger_of(self._engine)
            self._problems = self._problems or self._of_subjects() or self._of_redis()
        except (*DATABASE_AWAY, redis.RedisError):
            return False
        return self._ledger is not None and not self._problems

    def _of_subjects(self) -> list[Check]:
        """Return the problems with tables of subjects that are missing when the process starts."""
        if self._ledger is None or self._has_subjects:
            return []
        problems = fitness.of_subjects(self._engine, self._registry)
        self._has_subjects = not problems
        return problems

    def _of_redis(self) -> list[Check]:
        if self._client is None or self._ledger is None:
            return []
        owner = ownership.claim(self._client, self._ledger)
        return wrong([redis_fitness.belongs(owner, self._ledger)])
