"""``rota pause``: have the jobs of a scope not started for a while."""

from datetime import datetime, timedelta

import click

from core.cli import moments, scopes
from core.cli.actor import by_option
from core.cli.output import local
from core.cli.surroundings import ledger
from core.errors import PauseError
from core.jobs.registry import Registry
from core.ledger import audit, history, pauses
from core.ledger.audit import Actor
from core.plugins import loading


class Span(click.ParamType[timedelta]):
    """A span of time on the command line."""

    name = "span"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        try:
            found = moments.span(value)
        except (ValueError, OverflowError):
            found = timedelta()
        if not found:
            self.fail(f"{value!r} is not a span of time; expected such as 30m, 2h or 1d12h", param, ctx)
        return found


@click.command()
@scopes.scope_options
@click.option("--reason", metavar="TEXT", help="Why, for the others.")
@click.option("--for", "lasting", type=Span(), metavar="SPAN", help="It ends by itself after: 30m, 2h, 1d12h.")
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
    registry = loading.current()
    with ledger() as engine, engine.begin() as connection:
        scopes.refuse_unknown(connection, registry, scope)
        refuse_fast_lane(registry, job)
        end = end_of(history.now(connection), lasting, until)
        begun = pauses.begin(connection, scope, by=by.name, reason=reason, until=end)
        audit.record(connection, by, "pause", scope, until=end, reason=reason)
    click.echo(f"paused {scope} {f'until {local(begun.until)}' if begun.until else 'until it is resumed'}")
    if fast := scopes.on_fast_lane(registry, scope):
        click.echo(f"rota: not held, since they are on the fast lane (ledger=False): {', '.join(fast)}", err=True)


def end_of(now: datetime, lasting: timedelta | None, until: str | None) -> datetime | None:
    """When the pause ends, if that is known. Raises click.BadParameter."""
    if until is not None:
        return moments.future(until, now, "--until")
    try:
        return now + lasting if lasting is not None else None
    except OverflowError:
        raise click.BadParameter("that is further away than there are dates", param_hint="--for") from None


def refuse_fast_lane(registry: Registry, job: str | None) -> None:
    """Raise PauseError for a job that no pause can hold."""
    if job is not None and job in registry and not registry.job(job).ledger:
        raise PauseError(
            f"job {job!r} is on the fast lane (ledger=False): it runs without asking the ledger, so no pause holds it; "
            "stop the workers of its queue instead"
        )
