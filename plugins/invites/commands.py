"""``rota invites …``: teams with their seats, the waiting list, requests of unknown outcome, and imports of lists."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import click

from core import command_session, print_rows
from plugins.invites import asking, batches, codes, members, moves, orphans, overview, teams

TEAMS = ["name", "pool", "seats", "taken", "state", "closed_until"]
SEATS = ["id", "email", "state", "expires_at"]
WAITING = ["id", "pool", "email", "priority", "asked_at"]
REQUESTS = ["id", "kind", "team", "seat_id", "state", "attempts", "last_status", "changed_at"]
ORPHANS = ["id", "team_id", "email", "state", "sightings", "first_seen_at", "last_seen_at", "decided_by"]
PROBLEMS = ["line", "problem"]
#: Who has decided about an orphan.
BY = "rota invites"
#: At most this many problems of an import are printed.
SHOWN = 20

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
days_option = click.option(
    "--days", type=click.IntRange(1), metavar="N", help="How long a seat is kept; no end by default."
)
limit_option = click.option(
    "--limit", default=100, type=click.IntRange(1), metavar="N", help="At most so many; 100 by default."
)
pool_option = click.option("--pool", required=True, metavar="NAME", help="The pool whose seats are meant.")


@click.group()
def invites() -> None:
    """List the teams with their seats and the people who wait, and change them.

    \b
      rota invites add-team red --pool club --seats 50
      rota invites import people.txt --pool club
      rota invites waiting --json
    """


@invites.command("teams")
@as_json
def list_teams(as_json: bool) -> None:
    """List the teams, with the number of their seats and of those that are taken."""
    with command_session() as session:
        rows = _rows(teams.list_teams(session), TEAMS)
    print_rows(rows, TEAMS, as_json=as_json, empty="no teams; `rota invites add-team` adds one")


@invites.command("seats")
@click.argument("team")
@click.option("--after", default=0, type=int, metavar="ID", help="Begin after this seat.")
@limit_option
@as_json
def list_seats(team: str, after: int, limit: int, as_json: bool) -> None:
    """List the seats of a team that are taken, and the people who have them."""
    with command_session() as session:
        rows = _rows(teams.list_seats(session, teams.find_team(session, team), after=after, limit=limit), SEATS)
    print_rows(rows, SEATS, as_json=as_json, empty="no seat is taken")


@invites.command("add-team")
@click.argument("name")
@pool_option
@click.option("--seats", required=True, type=int, metavar="N", help="How many seats the team has.")
@click.option("--gateway-ref", metavar="REF", help="The team's name at the gateway; NAME by default.")
def add_team(name: str, pool: str, seats: int, gateway_ref: str | None) -> None:
    """Add a team. Its seats go to those who wait for a seat of its pool."""
    with command_session() as session:
        team_id = teams.add_team(session, name, pool=pool, seats=seats, gateway_ref=gateway_ref)
    click.echo(f"added {name} as team {team_id}")


@invites.command("set-seats")
@click.argument("team")
@click.argument("seats", type=int)
def set_seats(team: str, seats: int) -> None:
    """Give a team another number of seats, which is not lower than those that are taken."""
    with command_session() as session:
        before = teams.set_seats(session, team, seats)
    click.echo(f"{team} has {seats} seats, and had {before}")


@invites.command("close")
@click.argument("team")
def close_team(team: str) -> None:
    """Give no more seats of a team. Its members stay."""
    with command_session() as session:
        changed = teams.close_team(session, team)
    click.echo(f"closed {team}" if changed else f"{team} is closed already")


@invites.command("open")
@click.argument("team")
def open_team(team: str) -> None:
    """Give seats of a closed team again."""
    with command_session() as session:
        changed = teams.open_team(session, team)
    click.echo(f"opened {team}" if changed else f"{team} is open already")


@invites.command("remove")
@click.argument("team")
@click.argument("email")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def remove(team: str, email: str, yes: bool) -> None:
    """Remove a person from a team. The seat is free when the gateway has confirmed it."""
    if not yes:
        click.confirm(f"Remove {email} from {team}?", abort=True)
    with command_session() as session:
        started = members.remove_member(session, team, email)
    click.echo("the removal is requested" if started else "the removal is under way already")


@invites.command("move")
@click.argument("email")
@click.argument("from_team")
@click.argument("to_team")
def move(email: str, from_team: str, to_team: str) -> None:
    """Move a person to another team. The old seat is removed after the new one is confirmed."""
    with command_session() as session:
        move_id = moves.move_member(session, email, from_team, to_team)
    click.echo(f"move {move_id} has begun")


@invites.command("cancel-move")
@click.argument("email")
@click.argument("from_team")
def cancel_move(email: str, from_team: str) -> None:
    """End a person's move to another team before the invitation is sent."""
    with command_session() as session:
        ended = moves.cancel_move(session, email, from_team)
    click.echo("the person keeps the old seat" if ended else "the person is not moving")


@invites.command("extend")
@click.argument("team")
@click.argument("email")
@click.option("--days", required=True, type=click.IntRange(1), metavar="N", help="For how many days.")
def extend(team: str, email: str, days: int) -> None:
    """Let a person keep a seat longer."""
    with command_session() as session:
        end = members.extend(session, team, email, timedelta(days=days))
    click.echo("the seat has no end" if end is None else f"the seat ends {end:%Y-%m-%d %H:%M} UTC")


@invites.command("code")
@pool_option
@click.option("--uses", default=1, type=int, metavar="N", help="How many people may use it; 1 by default.")
@days_option
def code(pool: str, uses: int, days: int | None) -> None:
    """Make a code that gives people seats, and print it. It cannot be printed again."""
    with command_session() as session:
        made = codes.add_code(session, pool, uses=uses, days=days)
    click.echo(made)


@invites.command("waiting")
@click.option("--pool", metavar="NAME", help="Only those who wait for a seat of this pool.")
@limit_option
@as_json
def list_waiting(pool: str | None, limit: int, as_json: bool) -> None:
    """List the people who wait, in the order in which they get seats."""
    with command_session() as session:
        rows = _rows(asking.list_waiting(session, pool, limit), WAITING)
    print_rows(rows, WAITING, as_json=as_json, empty="nobody waits")


@invites.command("leave")
@click.argument("email")
@pool_option
def leave(email: str, pool: str) -> None:
    """Take a person out of the waiting list."""
    with command_session() as session:
        left = asking.leave_waiting(session, email, pool)
    click.echo("the person waits no more" if left else "the person does not wait")


@invites.command("unknown")
@as_json
def unknown(as_json: bool) -> None:
    """List the requests to the gateway whose outcome is unknown, and removals that it has refused."""
    with command_session() as session:
        rows = [vars(each) for each in overview.unknown_requests(session)]
    print_rows(rows, REQUESTS, as_json=as_json, empty="the outcome of every request is known")


@invites.command("orphans")
@as_json
def list_orphans(as_json: bool) -> None:
    """List the members at the gateway that no record explains."""
    with command_session() as session:
        rows = _rows(orphans.list_orphans(session), ORPHANS)
    print_rows(rows, ORPHANS, as_json=as_json, empty="no orphans")


@invites.command("keep-orphan")
@click.argument("orphan", type=int)
def keep_orphan(orphan: int) -> None:
    """Decide that a member at the gateway stays although no record explains it."""
    with command_session() as session:
        changed = orphans.keep_orphan(session, orphan, BY)
    click.echo(f"orphan {orphan} stays" if changed else f"that orphan {orphan} stays was decided already")


@invites.command("remove-orphan")
@click.argument("orphan", type=int)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def remove_orphan(orphan: int, yes: bool) -> None:
    """Remove a member from the gateway that no record explains. Asks first."""
    if not yes:
        click.confirm(f"Remove orphan {orphan} from the gateway?", abort=True)
    with command_session() as session:
        run_id = orphans.remove_orphan(session, orphan, BY)
    click.echo(f"run {run_id} removes orphan {orphan}")


@invites.command("import")
@click.argument("file", type=click.File(encoding="utf-8-sig", errors="replace"))
@pool_option
@days_option
@click.option("--preview", "only_preview", is_flag=True, help="Show what would happen, and change nothing.")
@click.option(
    "--problems", "problems_to", type=click.Path(path_type=Path), metavar="PATH", help="Write the problems here."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def import_list(
    file: IO[str], pool: str, days: int | None, only_preview: bool, problems_to: Path | None, yes: bool
) -> None:
    """Invite the people of a list with an address in each line; - is stdin. Shows what will happen, and asks."""
    lines = file.read().splitlines()
    with command_session() as session:
        shown = batches.preview(session, lines, pool, days=days)
    _tell(shown, problems_to)
    if only_preview:
        return
    if not yes:
        click.confirm("Invite them?", abort=True)
    with command_session() as session:
        done = batches.invite_many(session, lines, pool, days=days)
    click.echo(f"batch {done.batch_id}: {done.seats} have a seat, {done.waiting} wait")


@invites.command("problems")
@click.argument("batch", type=int)
@as_json
def list_problems(batch: int, as_json: bool) -> None:
    """List the lines of a batch that invited nobody, with the reasons."""
    with command_session() as session:
        rows = _rows(batches.list_problems(session, batch), PROBLEMS)
    print_rows(rows, PROBLEMS, as_json=as_json, empty="no such lines")


def _tell(report: batches.Report, problems_to: Path | None) -> None:
    click.echo(f"{report.lines} lines: {report.seats} people would have a seat at once, {report.waiting} would wait")
    if not report.problems:
        return
    lines = [f"{line}\t{problem}" for line, problem in report.problems.items()]
    if problems_to is not None:
        problems_to.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    click.echo(f"{len(lines)} lines invite nobody" + (":" if problems_to is None else f"; see {problems_to}"))
    for line in lines[:SHOWN] if problems_to is None else []:
        click.echo(f"  line {line}")
    if problems_to is None and len(lines) > SHOWN:
        click.echo(f"  and {len(lines) - SHOWN} more; --problems PATH writes them all")


def _rows(found: Iterable[object], columns: list[str]) -> list[dict[str, Any]]:
    return [{column: getattr(each, column) for column in columns} for each in found]
