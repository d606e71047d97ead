"""``rota pause``: pauses the jobs of a scope. No worker starts them until the pause ends."""

from datetime import timedelta

import click

from core.cli import moments, scopes
from core.cli.actor import by_option
from core.cli.environment import ledger
from core.cli.output import say, warn
from core.ledger.audit import Actor
from core.operations import pauses
from core.operations.wording import local
from core.plugins import loading


@click.command()
@scopes.scope_options
@click.option("--reason", metavar="TEXT", help="The reason, for other people.")
@click.option(
    "--for", "lasting", type=moments.Span(), metavar="SPAN", help="End the pause after this span: 30m, 2h, 1d12h."
)
@click.option("--until", metavar="TIME", help="End the pause at this time: 18:00, 2026-11-23T18:00.")
@by_option
def pause(
    job: str | None,
    queue: str | None,
    plugin: str | None,
    everything: bool,
    reason: str | None,
    lasting: timedelta | None,
    until: str | None,
    by: Actor,
) -> None:
    """Stop starting JOB, or all jobs of a queue or a plugin, for a while or until `rota resume`.

    Slots that come due in the pause are recorded as skipped. Requested runs and retries wait, and start when the pause
    ends. Running runs finish. Jobs on the fast lane cannot be paused.

    \b
      rota pause close-day --reason "the bank is down" --for 2h
      rota pause --queue mail --until 18:00
      rota pause --everything
    """
    scope = scopes.chosen(job, queue, plugin, everything)
    if lasting is not None and until is not None:
        raise click.UsageError("--for and --until contradict each other; give one")
    with moments.read(), ledger() as engine, engine.begin() as connection:
        begun = pauses.begin(connection, loading.current(), scope, by, reason=reason, lasting=lasting, until=until)
    say(f"paused {scope} {f'until {local(begun.pause.until)}' if begun.pause.until else 'until it is resumed'}")
    if begun.on_fast_lane:
        fast = ", ".join(begun.on_fast_lane)
        warn(f"not paused, since they are on the fast lane (ledger=False): {fast}")
