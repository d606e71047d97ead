"""Asks for confirmation before an action that cannot be undone."""

import sys

import click

from core.cli import Problem
from core.observability.terminal_text import visible


def confirm(question: str, *, is_given: bool, word: str = "") -> None:
    """Ask ``question``. The person must type ``word``, or confirm with yes if there is no ``word``.

    If ``is_given``, an option has confirmed already, and nothing is asked. Raises Problem for any other answer, and if
    there is no terminal.
    """
    if is_given:
        return
    question = visible(question)
    if not is_answerable():
        raise Problem(f"{question} There is no terminal to answer on; use --yes")
    if word:
        answered = click.prompt(f"{question} Type {word} to continue", default="", show_default=False) == word
    else:
        answered = click.confirm(question)
    if not answered:
        raise Problem("nothing was changed")


def is_answerable() -> bool:
    """Return whether a person can answer on a terminal."""
    return sys.stdin.isatty()
