"""``rota run``: runs a job now. With ``--wait``, also follows the run."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
from sqlalchemy import Engine

from core.cli import Problem
from core.cli.actor import by_option
from core.cli.environment import ledger
from core.cli.output import say, warn
from core.ledger import history
from core.ledger.audit import Actor
from core.ledger.models import FINAL, State
from core.observability.terminal_text import visible
from core.operations import requests
from core.operations.pauses import in_words
from core.operations.wording import brief
from core.plugins import loading


class JsonObject(click.ParamType[dict[str, Any]]):
    """A JSON object on the command line."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(f"this is not JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('expected a JSON object of the arguments by name, such as \'{"region": "uk"}\'', param, ctx)
        return parsed


@click.command()
@click.argument("job")
@click.option(
    "--key",
    default="",
    help="Runs of one job with different keys may run at the same time.",
)
@click.option("--args", type=JsonObject(), metavar="JSON", help="The arguments as a JSON object, by name.")
@click.option("--wait", is_flag=True, help="Follow the run to its end; exit status 0 only if it succeeded.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: stop waiting after this time."
)
@by_option
def run(job: str, key: str, args: dict[str, Any] | None, wait: bool, timeout: float | None, by: Actor) -> None:
    """Run JOB now, and print the id of the run. While the job is paused, the run waits.

    The run is a row in the ledger. A worker starts it within a second, even while Redis is away. A job on the fast lane
    (ledger=False) has no rows, so this command refuses it: send it a message from code.

    \b
      rota run close-day --args '{"region": "uk"}' --wait
      rota run poll-mailbox --key 42
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait")
    with ledger() as engine:
        requested = requests.request(engine, loading.current(), job, by, key=key, args=args)
        say(str(requested.run_id))
        for pause in requested.pauses:
            warn(f"{job} is {in_words(pause)}; the run waits for the end of that pause")
        if wait:
            follow(engine, requested.run_id, timeout)


def follow(engine: Engine, run_id: int, timeout_seconds: float | None) -> None:
    """Show the run's state until it is over. Raises Problem unless it succeeded in time."""
    try:
        with status_line() as show:
            row = requests.follow(engine, run_id, timeout_seconds, show=lambda look: show(in_short(look)), warn=warn)
    except KeyboardInterrupt:
        raise Problem(f"no longer following run {run_id}, which continues: see `rota runs`") from None
    if row.state not in FINAL:
        raise Problem(f"run {run_id} is {row.state} after {timeout_seconds:g} s, and continues: see `rota runs`")
    if row.state != State.SUCCEEDED:
        why = visible(": ".join(part for part in (row.reason, row.error) if part))
        raise Problem(f"run {run_id} is {row.state}: {why}" if why else f"run {run_id} is {row.state}")
    result = brief(row.result, longest=10_000)
    say(f"succeeded{f': {result}' if result else ''}", err=True)


def in_short(row: history.Run) -> str:
    """Return a run's state in one line."""
    attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
    doing = brief(row.progress) if row.state == State.RUNNING else row.reason or ""
    return visible(f"run {row.id}: {row.state}{attempt}{f' ({doing})' if doing else ''}")


def status_line() -> AbstractContextManager[Callable[[str], None]]:
    """Show a status line that changes in place. Show nothing if stderr is not a terminal."""
    if not sys.stderr.isatty():
        return nullcontext(lambda _line: None)
    from core.cli.spinner import spinning

    return spinning()
