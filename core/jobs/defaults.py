"""Defaults that the jobs of one plugin share."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypedDict, Unpack

from core.errors import DeclarationError, suggestion
from core.jobs.job import Backoff, Isolation, Job, Misfire, Overlap, job
from core.jobs.keyed import Keyed
from core.jobs.limit import Limit
from core.jobs.schedules import Schedule
from core.jobs.subject import Subject


class JobOptions(TypedDict, total=False):
    """The options of ``job``, by name."""

    queue: str
    schedule: Schedule | None
    max_retries: int
    retry_delay: timedelta
    backoff: Backoff
    longest_delay: timedelta
    jitter: bool
    retry_on: tuple[type[BaseException], ...]
    dead_on: tuple[type[BaseException], ...]
    expires: timedelta | None
    priority: int
    overlap: Overlap
    misfire: Misfire
    misfire_grace: timedelta
    misfire_cap: int
    soft_limit: timedelta
    hard_limit: timedelta
    ledger: bool
    isolation: Isolation | None
    subject: Subject | None
    keyed: Keyed | None
    limits: Sequence[Limit]


class JobDefaults:
    """Declares jobs as ``job`` does, with the plugin's own defaults::

        job = JobDefaults(queue="billing", max_retries=5)

        @job("close-day", schedule=cron("30 3 * * *"))
        def close_day(run: Run) -> None: ...

    Raises DeclarationError for an unknown option.
    """

    def __init__(self, **defaults: Unpack[JobOptions]) -> None:
        unknown = sorted(defaults.keys() - JobOptions.__annotations__.keys())
        if unknown:
            raise DeclarationError(f"unknown option {unknown[0]!r}{suggestion(unknown[0], JobOptions.__annotations__)}")
        self._defaults = defaults

    def __call__(self, name: str, **options: Unpack[JobOptions]) -> Callable[[Callable[..., Any]], Job]:
        """Declare a job. An option that is given here replaces the default."""
        merged: JobOptions = {**self._defaults, **options}
        return job(name, **merged)
