"""``rota why``: explains why a job did or did not run at a certain time, in sentences for an operator."""

import click

from core.cli import moments
from core.cli.environment import looking
from core.cli.output import as_json, print_json, say
from core.operations.why import ask
from core.plugins import loading


@click.command()
@click.argument("job")
@click.option("--at", "time", required=True, metavar="TIME", help="03:00, 2026-11-23T03:00, or with an offset.")
@click.option("--key", default="", help="The key of the runs, if they have one.")
@as_json
@click.pass_context
def why(ctx: click.Context, job: str, time: str, key: str, as_json: bool) -> None:
    """Explain why JOB did or did not run at a certain time.

    TIME is a time of day, which means its newest occurrence, or a date and time in ISO 8601. Without an offset, the
    time is in the job's own time zone; without seconds, it means the whole minute. Exit status 0 if the slot or the
    requested runs of that time ran and succeeded, 1 otherwise.

    \b
      rota why close-day --at 03:00
      rota why close-day --at 2026-03-29T01:30
      rota why close-day --at 2026-11-23T03:00:00+00:00 --json
    """
    with moments.read(), looking() as engine, engine.connect() as connection:
        found = ask(connection, loading.current(), job, at=time, key=key)
    if as_json:
        print_json(found)
    else:
        say(*found.answer)
    if not found.succeeded:
        ctx.exit(1)
