"""The option ``--by``: the name of the person who acts, for the audit. Without it, the name of the logged-in user."""

import getpass
import os
import socket

import click

from core.ledger.audit import Actor

LONGEST = 200


def login() -> str:
    """Return the name of the logged-in user and the name of the host. In a container there may be no user name."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def checked(_ctx: click.Context, _param: click.Parameter, name: str) -> Actor:
    """Return the actor with this name. Raises click.BadParameter for a name that the audit does not accept."""
    if not name.strip() or len(name) > LONGEST or not name.isprintable():
        raise click.BadParameter(f"expected a name of 1 to {LONGEST} printable characters")
    return Actor(name.strip(), via="cli")


#: The option of every command that writes to the audit.
by_option = click.option("--by", metavar="NAME", default=login, callback=checked, help="Your name, for the audit.")
