"""``rota check``: whether everything needed is there, for people and for deploys."""

from dataclasses import asdict

import click

from core.cli.output import as_json, print_json

MARKS = {"ok": ("ok", "green"), "wrong": ("no", "red"), "info": ("--", "yellow")}


@click.command()
@as_json
@click.option("--live", is_flag=True, help="Demand a live worker for every queue, a scheduler and a dispatcher.")
@click.option(
    "--here",
    type=click.Choice(["worker", "scheduler"]),
    help="Demand that one of these is alive on this host: a container's health check.",
)
@click.pass_context
def check(ctx: click.Context, as_json: bool, live: bool, here: str | None) -> None:
    """Say whether everything needed is there and reachable; exit status 0 if so, 1 if not.

    Looks at the plugins, the settings, PostgreSQL, its tables and Redis, for a few seconds at most. Which processes are
    alive is told, and counts only with --live or --here.

    \b
      rota check && systemctl restart rota-worker
      rota check --live --json
    """
    from core.operations.health import Check, everything

    found: list[Check] = []
    for answer in everything(live=live, here=here):
        found.append(answer)
        if not as_json:
            show(answer.outcome, answer.name, answer.found, answer.advice)
    is_ok = all(answer.outcome != "wrong" for answer in found)
    if as_json:
        print_json({"ok": is_ok, "checks": [asdict(answer) for answer in found]})
    if not is_ok:
        ctx.exit(1)


def show(outcome: str, name: str, found: str, advice: str) -> None:
    """Print one answer."""
    mark, colour = MARKS[outcome]
    click.echo(f"{click.style(mark, fg=colour)}  {name}: {found}")
    if advice:
        click.echo(f"      {advice}")
