"""``rota diff``: what an upgrade to the code installed here would change in jobs, and for whose runs nobody is left."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from sqlalchemy import Connection

from core.cli.output import as_json, print_json
from core.cli.surroundings import ledger
from core.ledger import history, orphans, releases
from core.ledger.releases import Release
from core.plugins import loading


@dataclass(frozen=True, slots=True)
class Difference:
    """What is different here from the last release that ran."""

    added: list[str]
    removed: list[str]
    #: Each changed job with its changed fields: what they were, and what they are here.
    changed: dict[str, dict[str, list[Any]]]
    #: Each job that is not here with how many of its runs wait or are dead, by state.
    left_behind: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def is_harmless(self) -> bool:
        """Whether nothing is removed, and nothing waits for what is not here."""
        return not self.removed and not self.left_behind


@click.command()
@as_json
@click.pass_context
def diff(ctx: click.Context, as_json: bool) -> None:
    """Say what changed in jobs since the last release that ran against this database.

    Compares the plugins installed here with the release that was alive last, and counts the runs that wait, or are
    dead, for jobs that are not here. Exit status 1 if a job is removed or anything is left for one, else 0: it can
    gate a deploy.

    \b
      rota diff && systemctl restart rota-worker
      rota diff --json | jq '.removed'
    """
    here = releases.of(loading.current())
    with ledger() as engine, engine.connect() as connection:
        last = releases.last(connection)
        found = difference(last or here, here, left_behind(connection, here))
    if as_json:
        print_json(
            {
                "added": found.added,
                "removed": found.removed,
                "changed": found.changed,
                "left_behind": found.left_behind,
                "is_first": last is None,
            }
        )
    else:
        click.echo("\n".join(lines(found)) or ("no release has run here yet" if last is None else "nothing changed"))
    if not found.is_harmless:
        ctx.exit(1)


def difference(before: Release, here: Release, left: dict[str, dict[str, int]]) -> Difference:
    """What is different ``here`` from ``before``."""
    return Difference(
        sorted(set(here.jobs) - set(before.jobs)),
        sorted(set(before.jobs) - set(here.jobs)),
        {job: fields for job in here.jobs if (fields := changes(before.jobs.get(job), here.jobs[job]))},
        left,
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


def lines(found: Difference) -> Iterator[str]:
    """The difference for people."""
    yield from (f"+ {job}" for job in found.added)
    yield from (f"- {job}" for job in found.removed)
    for job, fields in found.changed.items():
        yield f"~ {job}"
        yield from (f"    {name}: {told(before)} → {told(here)}" for name, (before, here) in fields.items())
    for job, states in found.left_behind.items():
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        yield f"! {job}: {counts}, and the job is not installed here"


def told(value: Any) -> str:
    """A field's value; whole seconds without their fraction."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
