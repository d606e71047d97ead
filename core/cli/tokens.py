"""``rota tokens``: makes, lists and revokes tokens of the HTTP service."""

from datetime import timedelta

import click

from core.cli import Group, moments
from core.cli.actor import by_option
from core.cli.environment import configured, ledger
from core.cli.output import as_json, print_json, say, write
from core.cli.tables import Column, print_table
from core.ledger.audit import Actor, Role
from core.operations import tokens as operations
from core.operations.tokens import Token, Wanted
from core.operations.wording import local

COLUMNS = (
    Column("name"),
    Column("role", rank=1),
    Column("limits", rank=4),
    Column("expires", rank=2),
    Column("last used", rank=3),
    Column("created by", rank=5),
)
role_option = click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "admin"]),
    default="viewer",
    show_default=True,
    help="The rights that it gives.",
)


@click.group(cls=Group, invoke_without_command=True)
@as_json
@click.pass_context
def tokens(ctx: click.Context, /, as_json: bool) -> None:
    """List the tokens of the HTTP service. Their secrets are not kept, and cannot be shown.

    \b
      rota tokens create grafana
      rota tokens create deploy --role operator --plugin billing --for 30d
      rota tokens revoke grafana
    """
    if ctx.invoked_subcommand is not None:
        return
    with ledger() as engine, engine.connect() as connection:
        found = operations.listed(connection, Actor("", "cli"))
    if as_json:
        print_json(found)
        return
    print_table(COLUMNS, [row(each) for each in found], empty="no tokens; `rota tokens create NAME` makes one")


def row(token: Token) -> tuple[str, ...]:
    """Return a token as a row of the table."""
    limits = [f"plugin {name}" for name in token.plugins or ()] + [f"queue {name}" for name in token.queues or ()]
    expires = f"{local(token.expires_at)}{' (expired)' if token.is_expired else ''}"
    used = local(token.used_at, missing="never")
    return token.name, token.role, ", ".join(limits), expires, used, token.created_by


@tokens.command()
@click.argument("name")
@role_option
@click.option("--plugin", "plugins", multiple=True, metavar="PLUGIN", help="Only jobs of this plugin; repeatable.")
@click.option("--queue", "queues", multiple=True, metavar="QUEUE", help="Only jobs of this queue; repeatable.")
@click.option("--for", "lasting", type=moments.Span(), default="90d", show_default=True, help="How long it is valid.")
@click.option("--see-arguments", is_flag=True, help="Let a viewer also see the arguments of runs, except secret ones.")
@by_option
def create(
    name: str,
    role: Role,
    plugins: tuple[str, ...],
    queues: tuple[str, ...],
    lasting: timedelta,
    see_arguments: bool,
    by: Actor,
) -> None:
    """Make a token, and print its secret, which cannot be shown again.

    A viewer may see everything except the arguments of runs. An operator may also see arguments, and run, retry, drop,
    cancel and pause. An admin may do everything.

    \b
      rota tokens create grafana
      rota tokens create deploy --role operator --plugin billing --for 30d
    """
    wanted = Wanted(name, role, plugins or None, queues or None, lasting, True if see_arguments else None)
    with ledger() as engine, engine.begin() as connection:
        made = operations.create(connection, wanted, by)
    write(made.token)
    say(f"made the token {name} with the role {role}; keep the secret now, since it is not shown again", err=True)


@tokens.command()
@click.argument("name")
@by_option
def revoke(name: str, by: Actor) -> None:
    """Revoke the token of that NAME, and end the sessions of browsers that began with it.

    \b
      rota tokens revoke grafana
    """
    with ledger() as engine, engine.begin() as connection:
        operations.revoke(connection, name, by)
    say(f"revoked {name}")


@tokens.command()
@role_option
@by_option
def link(role: Role, by: Actor) -> None:
    """Print a link with which one browser can log in, once, within an hour.

    \b
      rota tokens link --role operator
    """
    from core.operations.web_address import login_link

    settings = configured()
    with ledger() as engine, engine.begin() as connection:
        told = login_link(settings, operations.link(connection, by, role=role))
    write(told)
