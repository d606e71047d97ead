"""``rota resume``: ends a pause."""

import click

from core.cli import scopes
from core.cli.actor import by_option
from core.cli.environment import ledger
from core.cli.output import say, warn
from core.ledger.audit import Actor
from core.operations import pauses
from core.plugins import loading


@click.command()
@scopes.scope_options
@by_option
def resume(job: str | None, queue: str | None, plugin: str | None, everything: bool, by: Actor) -> None:
    """End the pause of JOB, of a queue, of a plugin, or of everything.

    Waiting runs start within a second or two. A pause ends only for its whole scope: while a queue is paused, a single
    job of the queue cannot be resumed.

    \b
      rota resume close-day
      rota resume --queue mail
    """
    scope = scopes.chosen(job, queue, plugin, everything)
    with ledger() as engine, engine.begin() as connection:
        others = pauses.end(connection, loading.current(), scope, by)
    say(f"resumed {scope}")
    for pause in others:
        warn(f"{scope} is still paused by the pause of {pause.scope}")
