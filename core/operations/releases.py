"""Releases: what an upgrade to the code installed here would change in jobs, and for whose runs nobody is left."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from core.jobs.registry import Registry
from core.ledger import history, orphans, releases
from core.ledger.releases import Release
from core.operations.shape import Shape


class Difference(Shape):
    """What is different here from the last release that ran."""

    added: list[str]
    removed: list[str]
    #: Each changed job with its changed fields: what they were, and what they are here.
    changed: dict[str, dict[str, list[Any]]]
    #: Each job that is not here with how many of its runs wait or are dead, by state.
    left_behind: dict[str, dict[str, int]]
    #: Whether no release has run against this database yet.
    is_first: bool

    @property
    def is_harmless(self) -> bool:
        """Whether nothing is removed, and nothing waits for what is not here."""
        return not self.removed and not self.left_behind


def compare(connection: Connection, registry: Registry) -> Difference:
    """The jobs of ``registry`` beside those of the release that was alive last."""
    here, last = releases.of(registry), releases.last(connection)
    before = last or here
    return Difference(
        added=sorted(set(here.jobs) - set(before.jobs)),
        removed=sorted(set(before.jobs) - set(here.jobs)),
        changed={job: fields for job in here.jobs if (fields := changes(before.jobs.get(job), here.jobs[job]))},
        left_behind=left_behind(connection, here),
        is_first=last is None,
    )


def changes(before: Mapping[str, Any] | None, here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The fields that are different, each with what it was and what it is; a new job has none."""
    if before is None:
        return {}
    fields = sorted({*before, *here})
    return {name: [before.get(name), here.get(name)] for name in fields if before.get(name) != here.get(name)}


def left_behind(connection: Connection, here: Release) -> dict[str, dict[str, int]]:
    """How many runs wait or are dead, by state, of each job that is not here."""
    gone = [job for job in history.jobs_seen(connection) if job not in here.jobs]
    counted = {job: orphans.waiting(connection, job) for job in gone}
    return {job: states for job, states in counted.items() if states}
