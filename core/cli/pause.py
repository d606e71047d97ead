"""``rota pause``: have the jobs of a scope not started for a while."""

from datetime import timedelta

import click

from core.cli import moments, scopes
from core.cli.actor import by_option
from core.cli.output import say, warn
from core.cli.surroundings import ledger
from core.ledger.audit import Actor
from core.operations import pauses
from core.operations.wording import local
from core.plugins import loading


@click.command()
@scopes.scope_options
@click.option("--reason", metavar="TEXT", help="Why, for the others.")
@click.option("--for", "lasting", type=moments.Span(), metavar="SPAN", help="It ends by itself after: 30m, 2h, 1d12h.")
@click.option("--until", metavar="TIME", help="It ends by itself then: 18:00, 2026-11-23T18:00.")
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
    """Have JOB, or all jobs of a queue or a plugin, not started until `rota resume`, or for a while.

    Slots that come due meanwhile are recorded as skipped. Requested runs and retries wait, and go on by themselves
    when the pause ends; what is at work ends its work. Jobs on the fast lane cannot be paused.

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
        warn(f"not held, since they are on the fast lane (ledger=False): {fast}")
