"""How commands print: sentences for people, JSON for programs. Tables stand in ``core/cli/tables.py``."""

import errno
import json
import os
import sys
from collections.abc import Sequence

import click

from core.cli import Problem
from core.cli.visible import visible
from core.operations.shape import Shape, jsonable

#: The option that every listing has.
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def say(*sentences: str, mark: str = "", err: bool = False) -> None:
    """Print each of ``sentences`` on a line of its own, whatever is in it; ``mark`` goes before, styled as it is."""
    write("\n".join(f"{mark}{visible(sentence)}" for sentence in sentences), err=err)


def warn(sentence: str) -> None:
    """Say something beside the answer, on stderr."""
    say(f"rota: {sentence}", err=True)


def print_json(answer: Shape | Sequence[Shape]) -> None:
    """Print ``answer``, exactly as it is."""
    write(json.dumps(jsonable(answer), indent=2, ensure_ascii=False))


def write(text: str, *, err: bool = False) -> None:
    """Print ``text`` as it is. Raises Problem where it cannot be written; a reader that has left ends the command."""
    try:
        click.echo(text, err=err)
    except OSError as error:
        if error.errno == errno.EPIPE:  # click ends quietly, with exit status 1
            raise
        _give_up_stdout()
        raise Problem(f"the answer cannot be written: {error.strerror}") from None


def _give_up_stdout() -> None:
    """Let what is still buffered go nowhere, or Python would try to write it once more as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
