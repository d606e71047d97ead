"""``rota check``: checks that everything Rota needs is installed and reachable."""

import click

from core.cli import environment
from core.cli.output import as_json, print_json, say
from core.plugins import loading
from core.schema import grants

MARKS = {"ok": ("ok", "green"), "wrong": ("no", "red"), "info": ("--", "yellow")}


@click.command()
@as_json
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["working", "looking"]),
    default="working",
    show_default=True,
    help="Check the needs of workers (working), or of commands that only read (looking).",
)
@click.option(
    "--live", is_flag=True, help="Require a worker for every queue, a scheduler, a dispatcher, and no overdue slots."
)
@click.option(
    "--here",
    type=click.Choice(["worker", "scheduler"]),
    help="Require a live worker or scheduler on this host, for a container's health check.",
)
@click.pass_context
def check(ctx: click.Context, as_json: bool, purpose: grants.Purpose, live: bool, here: str | None) -> None:
    """Check that everything Rota needs is installed and reachable. Exit status 0 if so, 1 if not.

    This checks the plugins, the settings, PostgreSQL, its tables and Redis, for a few seconds at most. It also shows
    live processes, idle transactions and overdue slots, which affect the exit status only with --live; --here requires
    one kind of process. With --for looking, the needs of workers are shown, but do not affect the exit status.

    \b
      rota check && systemctl restart rota-worker
      rota check --live --json
      rota check --for looking
    """
    from core.operations import health
    from core.operations.checks import Check

    found: list[Check] = []
    around = health.Surroundings(
        environment.environment(), environment.source(), environment.checked_ledger, environment.advice()
    )
    for answer in health.everything(loading.current(), around, purpose=purpose, live=live, here=here):
        found.append(answer)
        if not as_json:
            show(answer.outcome, answer.name, answer.found, answer.advice)
    report = health.report(found)
    if as_json:
        print_json(report)
    if not report.ok:
        ctx.exit(1)


def show(outcome: str, name: str, found: str, advice: str) -> None:
    """Print one check."""
    mark, colour = MARKS[outcome]
    say(f"{name}: {found}", mark=f"{click.style(mark, fg=colour)}  ")
    if advice:
        say(f"      {advice}")
