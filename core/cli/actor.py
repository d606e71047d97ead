"""Who does something by hand: asked for with ``--by``, by default whoever is logged in."""

import getpass
import os
import socket

import click

from core.ledger.audit import Actor

LONGEST = 200


def login() -> str:
    """The name and the host of whoever is logged in; in a container there may be no name."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def checked(_ctx: click.Context, _param: click.Parameter, name: str) -> Actor:
    """The actor of that name."""
    if not name.strip() or len(name) > LONGEST or not name.isprintable():
        raise click.BadParameter(f"expected a name of at most {LONGEST} characters")
    return Actor(name.strip(), via="cli")


#: The option that every command has which the audit tells of.
by_option = click.option("--by", metavar="NAME", default=login, callback=checked, help="Who you are, for the audit.")
