"""The changes of jobs between the last release and the code installed here, and the runs whose job is not installed."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from core.jobs import arguments
from core.jobs.registry import Registry
from core.ledger import history, orphans, releases
from core.ledger.releases import Release
from core.operations.json_shape import Instant, Shape

#: At most this many waiting runs of each job are checked. Checking that many takes some seconds.
MOST_JUDGED = 10_000


class ReleaseSeen(Shape):
    """A release: the jobs of the processes that had the same declarations."""

    fingerprint: str
    first_seen_at: Instant
    last_seen_at: Instant
    is_alive: bool
    jobs: list[str]


def newest(connection: Connection, most: int) -> list[ReleaseSeen]:
    """Return the newest releases, the newest first."""
    return [ReleaseSeen.model_validate(row) for row in releases.newest(connection, most)]


class Difference(Shape):
    """The difference between the code here and the last release that ran."""

    added: list[str]
    removed: list[str]
    #: Each changed job with its changed fields, each with the old and the new value.
    changed: dict[str, dict[str, list[Any]]]
    #: How many waiting runs of each job have arguments that do not fit the job's declaration here; see ``MOST_JUDGED``.
    misfits: dict[str, int]
    #: Each job that is missing here, with the number of its waiting or dead runs, by state.
    left_behind: dict[str, dict[str, int]]
    #: Whether no release has run against this database yet.
    is_first: bool

    @property
    def is_harmless(self) -> bool:
        """Whether no job is removed, the arguments of all waiting runs fit, and no run belongs to a missing job."""
        return not self.removed and not self.left_behind and not self.misfits


def compare(connection: Connection, registry: Registry) -> Difference:
    """Compare the jobs of ``registry`` with the jobs of the last release that was alive."""
    here, last = releases.of(registry), releases.last(connection)
    before = last or here
    return Difference(
        added=sorted(set(here.jobs) - set(before.jobs)),
        removed=sorted(set(before.jobs) - set(here.jobs)),
        changed={job: fields for job in here.jobs if (fields := changes(before.jobs.get(job), here.jobs[job]))},
        misfits=misfits(connection, registry),
        left_behind=left_behind(connection, here),
        is_first=last is None,
    )


def changes(before: Mapping[str, Any] | None, here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the fields that differ, each with its old and its new value. A new job has no old values.

    Each argument is a field, ``argument NAME``, and each limit is a field, ``limit NAME``. Fields that one of the two
    versions of Rota does not record are left out.
    """
    if before is None:
        return {}
    fields = sorted((before.keys() & here.keys()) - {"arguments", "form", "limits"})
    options = {name: [before[name], here[name]] for name in fields if before[name] != here[name]}
    limits = changed_limits(before.get("limits", {}), here.get("limits", {}))
    return {**options, **limits, **changed_arguments(before.get("arguments"), here["arguments"])}


def changed_limits(before: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the limits that differ: each with its numbers in the last release and here. A missing limit has None."""
    names = sorted(name for name in {*before, *here} if before.get(name) != here.get(name))
    return {f"limit {name}": [size_in_words(before.get(name)), size_in_words(here.get(name))] for name in names}


def size_in_words(numbers: Mapping[str, float] | None) -> str | None:
    """Return the numbers of a limit, such as ``10 at once`` or ``100 per 60 s``."""
    if numbers is None:
        return None
    if "at_once" in numbers:
        return f"{numbers['at_once']:g} at once"
    return f"{numbers['most']:g} per {numbers['per_seconds']:g} s"


def changed_arguments(before: Mapping[str, Any] | None, here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the arguments that differ: each with its declaration in the last release and here, or None if missing."""
    if before is None:
        return {}
    names = sorted(name for name in {*before, *here} if before.get(name) != here.get(name))
    return {f"argument {name}": told_apart(before.get(name), here.get(name)) for name in names}


def told_apart(before: Mapping[str, str] | None, here: Mapping[str, str] | None) -> list[Any]:
    """Return both declarations of an argument as texts.

    If the texts are equal, only the contents of the argument's type differ, and the second text says so.
    """
    was, now = in_words(before), in_words(here)
    return [was, now] if was != now else [was, f"{now}, with other contents"]


def in_words(declared: Mapping[str, str] | None) -> str | None:
    """Return an argument as its function declares it, such as ``str = 'uk'``."""
    if declared is None:
        return None
    return f"{declared['type']} = {declared['default']}" if "default" in declared else declared["type"]


def misfits(connection: Connection, registry: Registry) -> dict[str, int]:
    """Return, for each job, how many waiting runs have arguments that do not fit its declaration in ``registry``."""
    counted = {
        job.name: sum(not arguments.fits(job, args) for args in history.waiting_args(connection, job.name, MOST_JUDGED))
        for job in registry
    }
    return {job: count for job, count in counted.items() if count}


def left_behind(connection: Connection, here: Release) -> dict[str, dict[str, int]]:
    """Return the number of waiting or dead runs, by state, of each job that is missing here."""
    gone = [job for job in history.jobs_seen(connection) if job not in here.jobs]
    counted = {job: orphans.waiting(connection, job) for job in gone}
    return {job: states for job, states in counted.items() if states}
