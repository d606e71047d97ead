"""The names of a run's limits, which are filled from its arguments when the run is inserted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the limits of some runs of one job. The filled names are literals of PostgreSQL arrays."""

    #: The names as the job declares them; None if the job has no limits.
    declared: list[str] | None
    #: The filled names of each run.
    filled: Sequence[str]


NO_NAMES = Names(None, ())


def of(job: Job, args: Iterable[Mapping[str, Any]]) -> Names:
    """Return the names of the limits of runs of ``job``, one run for each of ``args``, which are JSON values."""
    if not job.limits:
        return NO_NAMES
    return Names([each.name for each in job.limits], [literal(job.limit_names(each)) for each in args])


def of_slot(job: Job) -> tuple[str | None, str | None]:
    """Return the names of a slot's limits twice, filled and as declared, as literals of PostgreSQL arrays."""
    if not job.limits:
        return None, None
    return literal(job.limit_names({})), literal(each.name for each in job.limits)


def literal(values: Iterable[str]) -> str:
    """Return ``values`` as a literal of a PostgreSQL array of text."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"
