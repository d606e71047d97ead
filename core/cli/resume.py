"""``rota resume``: end a pause."""

import click

from core.cli import scopes
from core.cli.actor import by_option
from core.cli.surroundings import ledger
from core.errors import PauseError
from core.jobs.registry import EVERYTHING
from core.ledger import audit, pauses
from core.ledger.audit import Actor
from core.ledger.pauses import Pause
from core.plugins import loading


@click.command()
@scopes.scope_options
@by_option
def resume(job: str | None, queue: str | None, plugin: str | None, everything: bool, by: Actor) -> None:
    """End the pause of JOB, of a queue, of a plugin, or of everything.

    What has waited goes on within a second or two. A pause is ended under the name under which it was begun: while its
    queue is paused, a job cannot be resumed alone.

    \b
      rota resume close-day
      rota resume --queue mail
    """
    scope = scopes.chosen(job, queue, plugin, everything)
    with ledger() as engine, engine.begin() as connection:
        active = pauses.active(connection)
        ended = pauses.end(connection, scope)
        if ended is None:
            raise PauseError(not_paused(scope, active))
        audit.record(connection, by, "resume", scope, paused_by=ended.paused_by, paused_at=ended.paused_at)
        others = holding(scope, pauses.active(connection))
    click.echo(f"resumed {scope}")
    for pause in others:
        click.echo(f"rota: it is still held by the pause of {pause.scope}", err=True)


def not_paused(scope: str, active: list[Pause]) -> str:
    """That ``scope`` is not paused, and what is."""
    for wider in holding(scope, active):
        how = scopes.options_for(wider.scope)
        return f"{scope} is not paused by itself, but held by the pause of {wider.scope}: `rota resume {how}` ends it"
    if active and scope == EVERYTHING:
        return f"no pause of everything is active, but of {', '.join(pause.scope for pause in active)}"
    return f"{scope} is not paused; `rota pauses` lists what is"


def holding(scope: str, active: list[Pause]) -> list[Pause]:
    """The pauses of other scopes that hold a job which is named by ``scope``; of a wider one, that of everything."""
    job = scope.removeprefix("job:")
    wider = loading.current().scopes.get(job, (EVERYTHING,)) if scope.startswith("job:") else (EVERYTHING,)
    return [pause for pause in pauses.of_scopes(active, wider) if pause.scope != scope]
