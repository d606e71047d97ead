"""The names of runs' limits, filled from their arguments when the runs are inserted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the limits of some runs of one job. The filled ones are literals of PostgreSQL arrays."""

    #: None if the job has no limits.
    declared: list[str] | None
    #: For each run.
    filled: Sequence[str]


NO_NAMES = Names(None, ())


def of(job: Job, args: Iterable[Mapping[str, Any]]) -> Names:
    """The names of the limits of a run of ``job`` for each of ``args``, JSON values."""
    if not job.limits:
        return NO_NAMES
    return Names([each.name for each in job.limits], [literal(job.limit_names(each)) for each in args])


def of_slot(job: Job) -> tuple[str | None, str | None]:
    """The names of a slot's limits, first filled, then as declared, as literals of PostgreSQL arrays."""
    if not job.limits:
        return None, None
    return literal(job.limit_names({})), literal(each.name for each in job.limits)


def literal(values: Iterable[str]) -> str:
    """``values`` as a literal of PostgreSQL's array of text."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"
