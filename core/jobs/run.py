"""``Run``, the first argument of a job's function: session, time, arguments, checkpoint and enqueue."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import structlog
from sqlalchemy.orm import Session

from core.jobs import arguments


class Checkpoint(Protocol):
    """The type of ``Run.checkpoint``, for functions that take this method as an argument."""

    def __call__(self, progress: Mapping[str, Any] | None = None, /) -> None:
        """Commit the work done so far; see ``Run.checkpoint``."""


class Work(Protocol):
    """The transaction of one attempt; see ``core/middleware/db_session.py``."""

    @property
    def session(self) -> Session:
        """The session of this attempt."""

    def checkpoint(self, progress: str | None) -> None:
        """Commit the transaction with ``progress``, a JSON text. Raises LeaseLost."""

    def is_time_to_tell(self) -> bool:
        """Return whether the caller must log the progress now."""

    def enqueue(
        self,
        job: str,
        *,
        key: str,
        args: Mapping[str, Any] | None,
        delay: timedelta,
        expires: timedelta | datetime | None,
        priority: int | None,
        unless: Literal["waiting"] | None,
    ) -> int:
        """Request a run of ``job`` in this transaction. Return the id of the run."""


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a run, as the job's function sees it."""

    id: int
    job: str
    key: str
    #: The planned time of this run, in UTC; None if the run was requested.
    slot: datetime | None
    #: The number of the attempt. The first attempt is 1.
    attempt: int
    #: The time when the attempt began, in UTC, by the database's clock.
    now: datetime
    #: The arguments as JSON values, before their conversion to the types of the function's annotations.
    args: Mapping[str, Any]
    work: Work = field(repr=False)

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """The logger of the job. Its lines have the fields of this attempt."""
        logger: structlog.stdlib.BoundLogger = structlog.get_logger(f"job.{self.job}")
        return logger

    @property
    def session(self) -> Session:
        """The SQLAlchemy session of this attempt.

        When the job returns, Rota commits the session together with the run's success.
        """
        return self.work.session

    def checkpoint(self, progress: Mapping[str, Any] | None = None, /) -> None:
        """Commit the work done so far, and continue in a new transaction.

        ``progress`` is for people: ``rota runs`` shows the latest progress, and it is logged at most every ten seconds.
        Raises LeaseLost, without a commit, if another worker owns the run now. Raises BadProgress if PostgreSQL cannot
        store ``progress``.
        """
        told = arguments.encode_progress(self.job, progress) if progress is not None else None
        self.work.checkpoint(told)
        if told is not None and self.work.is_time_to_tell():
            self.log.info("run.progress", progress=json.loads(told))

    def enqueue(
        self,
        job: str,
        *,
        key: str = "",
        args: Mapping[str, Any] | None = None,
        delay: timedelta = timedelta(0),
        expires: timedelta | datetime | None = None,
        priority: int | None = None,
        unless: Literal["waiting"] | None = None,
    ) -> int:
        """Request a run of ``job`` in this transaction; see ``core.enqueue``."""
        return self.work.enqueue(
            job, key=key, args=args, delay=delay, expires=expires, priority=priority, unless=unless
        )
