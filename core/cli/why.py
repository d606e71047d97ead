"""``rota why``: what became of a job at a certain time, in sentences for an operator."""

from zoneinfo import ZoneInfo

import click

from core.cli import moments
from core.cli.output import as_json, print_json
from core.cli.runs import described, refuse_unknown
from core.cli.surroundings import ledger
from core.jobs.registry import Registry
from core.ledger import history
from core.plugins import loading


@click.command()
@click.argument("job")
@click.option("--at", "time", required=True, metavar="TIME", help="03:00, 2026-11-23T03:00, or with an offset.")
@click.option("--key", default="", help="The key of the runs asked for, if they have one.")
@as_json
@click.pass_context
def why(ctx: click.Context, job: str, time: str, key: str, as_json: bool) -> None:
    """Say what became of JOB at a certain time, and why.

    TIME is a time of day, which means its newest occurrence, or a date and time in ISO 8601. Without an offset it is
    read on the clock of the job's own time zone; without seconds it is the whole minute. Exit status 0 if what was due
    then ran and succeeded, 1 otherwise.

    \b
      rota why close-day --at 03:00
      rota why close-day --at 2026-03-29T01:30
      rota why close-day --at 2026-11-23T03:00:00+00:00 --json
    """
    from core.operations.why import explain

    registry = loading.current()
    zone = zone_of(registry, job)
    with ledger() as engine, engine.connect() as connection:
        refuse_unknown(connection, job)
        try:
            moment = moments.read(time, zone, history.now(connection))
        except (ValueError, OverflowError) as error:
            expected = "expected 03:00, 2026-11-23T03:00 or 2026-11-23T03:00:00+00:00"
            raise click.BadParameter(f"{time!r} is not a time ({error}); {expected}", param_hint="--at") from None
        answer = explain(connection, registry, job, key, moment, zone)
    if as_json:
        print_json(
            {
                "job": job,
                "key": key,
                "at": moment.start.astimezone(zone),
                "succeeded": answer.succeeded,
                "slot": answer.slot,
                "answer": answer.sentences,
                "runs": [described(run) for run in answer.runs],
            }
        )
    else:
        click.echo("\n".join(answer.sentences))
    if not answer.succeeded:
        ctx.exit(1)


def zone_of(registry: Registry, job: str) -> ZoneInfo:
    """The zone in which people mean the times of ``job``."""
    found = registry.jobs.get(job)
    return ZoneInfo((found.schedule.timezone if found and found.schedule else None) or "UTC")
