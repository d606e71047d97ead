"""Runs that succeeded and left nothing in their session: recorded many together, by one thread per process.

A commit waits for the disk, whether it is of one run or of a hundred. So the thread that worked on such a run hands its
success over and goes on with the next; the message is acknowledged once the success is recorded, and not before. A run
that has work in its session commits by itself, with that work; so does one that may not overlap, since the next of its
job and key may be waiting for it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from core import database
from core.ledger import runs
from core.ledger.leases import Lease

logger = logging.getLogger(__name__)

#: The most that are recorded together.
MOST_TOGETHER = 200
#: The most that wait; beyond that, runs commit by themselves.
MOST_WAITING = 1000
#: How long the first waits for others, in seconds.
GATHER_SECONDS = 0.002
#: How long to wait before what could not be recorded is tried again, in seconds.
RECORD_AGAIN_SECONDS = 1.0
#: How often ``flush`` looks, in seconds.
LOOK_AGAIN_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Completion:
    """A run that succeeded."""

    lease: Lease
    #: Its result as a JSON text.
    result: str | None
    #: Told whether its success was recorded; if not, its lease was lost. Must not raise.
    on_recorded: Callable[[bool], None]


class Completions:
    """Records the successes of this process's runs."""

    def __init__(self, engine: Engine, process_id: Callable[[], int | None]) -> None:
        self._engine = engine
        self._process_id = process_id
        self._waiting: deque[Completion] = deque()
        self._come = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def has_room(self) -> bool:
        """Whether one more may be added."""
        return len(self._waiting) < MOST_WAITING and not self._stopping.is_set()

    def add(self, completion: Completion) -> None:
        """Record a success soon."""
        self._waiting.append(completion)
        if not self._come.is_set():
            self._come.set()
        if self._thread is None:
            self._start()

    def flush(self, timeout_seconds: float) -> None:
        """Wait until all that were added are recorded, or the time is up."""
        deadline = time.monotonic() + timeout_seconds
        while self._waiting and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_SECONDS)

    def stop(self, *, timeout_seconds: float = 10) -> None:
        """Record what is left, if PostgreSQL is there."""
        self._stopping.set()
        self._come.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rota-completions", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set() or self._waiting:
            self._come.wait()
            self._stopping.wait(GATHER_SECONDS)
            self._come.clear()
            try:
                self._record_all()
            except (DBAPIError, PoolTimeout) as error:
                logger.warning("run.not_recorded, trying again: %s", database.brief(error))
                if self._stopping.wait(RECORD_AGAIN_SECONDS):
                    return
                self._come.set()
            except Exception:  # a background loop outlives its errors
                logger.exception("run.not_recorded, trying again")
                self._come.set()

    def _record_all(self) -> None:
        while self._waiting:
            batch = [self._waiting[index] for index in range(min(len(self._waiting), MOST_TOGETHER))]
            recorded = self._record(batch)
            for completion in batch:
                self._waiting.popleft()
                completion.on_recorded(completion.lease.run_id in recorded)

    def _record(self, batch: Sequence[Completion]) -> set[int]:
        """Record ``batch`` and return the runs of it whose leases were good. Raises SQLAlchemy's DBAPIError."""
        recorded: set[int] = set()
        for process_id, group in groupby(batch, key=lambda completion: completion.lease.process_id):
            if process_id == self._process_id():  # else their leases ended with that registration
                with database.autocommit(self._engine) as connection:
                    outcomes = [(each.lease, each.result) for each in group]
                    recorded |= runs.succeed_many(connection, process_id, outcomes)
        return recorded
