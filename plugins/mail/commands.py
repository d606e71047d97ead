"""``rota mail …``: lists accounts, and changes them by hand. No command takes a password or a token as an argument."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import IO, Any

import click

from core import command_session, print_rows
from plugins.mail import accounts, encryption, retries
from plugins.mail.models import Auth, Tls

SPAN = re.compile(r"(\d{1,6})([smhd])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
GIVEN_UP = ["uid", "state", "size", "received_at", "error"]
COLUMNS = ["name", "host", "username", "folder", "poll_seconds", "state", "reason"]
SHOWN = (
    "id", "name", "host", "port", "tls", "ca_file", "username", "auth", "secret", "token_url", "client_id", "scope",
    "folder", "poll_seconds", "is_urgent", "state", "reason", "auth_failures", "postponed_until",
)  # fmt: skip

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class Span(click.ParamType[timedelta]):
    """A span of time with its unit: 60s, 5m, 2h, 1d."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the span. A text that is not a span is wrong usage."""
        found = SPAN.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not a number with s, m, h or d, such as 60s", param, ctx)
        return timedelta(**{UNITS[found[2]]: int(found[1])})


#: The parts of an account that can be given to ``add`` and ``change``.
PARTS: tuple[Decorator, ...] = (
    click.option("--port", type=int, metavar="N", help="993 by default with --tls implicit, otherwise 143."),
    click.option("--ca-file", metavar="PATH", help="The file of another certificate authority; on the workers."),
    click.option("--secret", metavar="NAME", help="The name of the password, or of the client's secret."),
    click.option("--auth", type=click.Choice([each.value for each in Auth]), help="A password by default."),
    click.option("--token-url", metavar="URL", help="With OAuth2: the address of the token server."),
    click.option("--client-id", metavar="ID", help="With OAuth2: the id of the client."),
    click.option("--scope", metavar="TEXT", help="With OAuth2: the scope of the token."),
    click.option("--refresh-token-file", type=click.File(), metavar="PATH", help="With OAuth2; - is stdin."),
    click.option("--folder", metavar="NAME", help="The folder that is polled; INBOX by default."),
    click.option("--every", type=Span(), metavar="SPAN", help="The interval, 10s to 1d; 60s by default."),
    click.option("--urgent/--not-urgent", "is_urgent", default=None, help="Poll it before others."),
)  # fmt: skip


def parts(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of PARTS to a command."""
    for option in reversed(PARTS):
        command = option(command)
    return command


def given(refresh_token_file: IO[str] | None, **options: Any) -> dict[str, Any]:
    """Return the options that were given. The refresh token is the content of the given file."""
    found = {name: value for name, value in options.items() if value is not None}
    return {**found, "refresh_token": refresh_token_file.read().strip()} if refresh_token_file else found


@click.group()
def mail() -> None:
    """List the accounts whose mailboxes are polled, and change them.

    \b
      rota mail add ann --host imap.example.org --username ann --tls implicit --secret ann
      rota mail list --json
      rota mail resume ann
    """


@mail.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def listing(as_json: bool) -> None:
    """List the accounts, and the reasons why some are not polled, or why their last polls failed."""
    with command_session() as session:
        rows = [{name: getattr(each, name) for name in SHOWN} for each in accounts.list_accounts(session)]
    print_rows(rows, COLUMNS, as_json=as_json, empty="no accounts; `rota mail add` adds one")


@mail.command()
@click.argument("name")
@click.option("--host", required=True, metavar="HOST", help="The host of the IMAP server.")
@click.option("--username", required=True, metavar="NAME", help="The user whose mailbox it is.")
@click.option(
    "--tls", required=True, type=click.Choice([each.value for each in Tls]), help="How the connection is encrypted."
)
@parts
def add(name: str, host: str, username: str, tls: str, **options: Any) -> None:
    """Add an account. It is polled at once, and then at its interval."""
    with command_session() as session:
        account_id = accounts.add_account(session, name, host=host, username=username, tls=tls, **given(**options))
    click.echo(f"added {name} as account {account_id}")


@mail.command()
@click.argument("name")
@click.option("--rename", metavar="NAME", help="Another name of the account.")
@click.option("--host", metavar="HOST", help="The host of the IMAP server.")
@click.option("--username", metavar="NAME", help="The user whose mailbox it is.")
@click.option("--tls", type=click.Choice([each.value for each in Tls]), help="How the connection is encrypted.")
@parts
def change(name: str, rename: str | None, **options: Any) -> None:
    """Change an account. New credentials resume an account whose log-in was refused."""
    changes = given(**options) | ({"name": rename} if rename is not None else {})
    with command_session() as session:
        changed = accounts.change_account(session, accounts.find_account(session, name).id, **changes)
    click.echo(f"changed {name}" if changed else f"nothing to change: {name}")


@mail.command()
@click.argument("name")
@click.option("--reason", metavar="TEXT", help="The reason, for other people.")
def pause(name: str, reason: str | None) -> None:
    """Do not poll an account until it is resumed."""
    with command_session() as session:
        accounts.pause_account(session, accounts.find_account(session, name).id, reason=reason)
    click.echo(f"paused {name}")


@mail.command()
@click.argument("name")
def resume(name: str) -> None:
    """Poll an account again that is paused, or whose log-in was refused."""
    with command_session() as session:
        resumed = accounts.resume_account(session, accounts.find_account(session, name).id)
    click.echo(f"resumed {name}" if resumed else f"{name} is active")


@mail.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(name: str, yes: bool) -> None:
    """Delete an account, its schedule and its messages."""
    with command_session() as session:
        account = accounts.find_account(session, name)
        if not yes:
            click.confirm(f"Delete the account {name} and all its messages?", abort=True)
        accounts.delete_account(session, account.id)
    click.echo(f"deleted {name}; a job deletes its messages")


@mail.command("given-up")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def given_up(name: str, as_json: bool) -> None:
    """List the messages of an account that were given up: they could not be fetched or processed, or are too big."""
    with command_session() as session:
        found = retries.given_up(session, accounts.find_account(session, name))
        rows = [{column: getattr(each, column) for column in GIVEN_UP} for each in found]
    print_rows(rows, GIVEN_UP, as_json=as_json, empty="no message was given up")


@mail.command()
@click.argument("name")
@click.argument("uids", nargs=-1, type=int, metavar="[UID]...")
def retry(name: str, uids: tuple[int, ...]) -> None:
    """Try the messages of an account again that were given up: all of them, or those with these UIDs."""
    with command_session() as session:
        retried = retries.retry_messages(session, accounts.find_account(session, name).id, uids)
    click.echo(f"to be fetched again: {retried.fetched}; to be processed again: {retried.processed}")


@mail.command()
def key() -> None:
    """Print a new key for ROTA_MAIL_KEY, which encrypts OAuth2 tokens."""
    click.echo(encryption.new_key())
