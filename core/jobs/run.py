"""What a job's function is handed: its session, the time, its arguments, and ways to checkpoint and to enqueue."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
from sqlalchemy.orm import Session

from core.jobs import arguments


class Checkpoint(Protocol):
    """The type of ``Run.checkpoint``, for functions that take it as an argument."""

    def __call__(self, progress: Mapping[str, Any] | None = None, /) -> None:
        """Commit this batch."""


class Work(Protocol):
    """The transaction of one attempt; see ``core/middleware/db_session.py``."""

    @property
    def session(self) -> Session:
        """The one session of this attempt."""

    def checkpoint(self, progress: str | None) -> None:
        """Commit what was done, with ``progress``, a JSON text. Raises LeaseLost."""

    def is_time_to_tell(self) -> bool:
        """Whether progress was last logged a while ago; if so, it is now."""

    def enqueue(self, job: str, *, key: str, args: Mapping[str, Any] | None, delay: timedelta) -> int:
        """Have ``job`` run once this transaction commits; the id of its run."""


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a run, as the job's function sees it."""

    id: int
    job: str
    key: str
    #: The due time this run stands for, in UTC; None: it was requested.
    slot: datetime | None
    #: Counted from 1.
    attempt: int
    #: When the attempt began, in UTC, by the database's clock.
    now: datetime
    #: The arguments as JSON values, before they were turned into what the function's annotations say.
    args: Mapping[str, Any]
    log: structlog.stdlib.BoundLogger = field(repr=False)
    work: Work = field(repr=False)

    @property
    def session(self) -> Session:
        """In a transaction as soon as it is used; committed for you, with the run's success, when the job returns."""
        return self.work.session

    def checkpoint(self, progress: Mapping[str, Any] | None = None, /) -> None:
        """Commit what was done so far, and go on in a new transaction.

        ``progress`` is for people: ``rota runs`` shows the latest, and the log has one in ten seconds. Raises
        LeaseLost, having committed nothing, if another worker owns the run by now; BadProgress for what PostgreSQL
        cannot store.
        """
        told = arguments.encode_progress(self.job, progress) if progress is not None else None
        self.work.checkpoint(told)
        if told is not None and self.work.is_time_to_tell():
            self.log.info("run.progress", progress=told)

    def enqueue(
        self, job: str, *, key: str = "", args: Mapping[str, Any] | None = None, delay: timedelta = timedelta(0)
    ) -> int:
        """Have ``job`` run once this transaction commits; see ``core.enqueue``."""
        return self.work.enqueue(job, key=key, args=args, delay=delay)
