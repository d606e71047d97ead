"""Asking before something is done that cannot be undone."""

import sys

import click

from core.cli import Problem
from core.observability.visible import visible


def confirm(question: str, *, is_given: bool, word: str = "") -> None:
    """Ask ``question``, to be answered by ``word`` if there is one, else by yes; ``is_given``: it was, by an option.

    Raises Problem for any other answer, and where nobody is there to answer.
    """
    if is_given:
        return
    question = visible(question)
    if not is_answerable():
        raise Problem(f"{question} Nobody is here to answer; say --yes")
    if word:
        answered = click.prompt(f"{question} Type {word} to go on", default="", show_default=False) == word
    else:
        answered = click.confirm(question)
    if not answered:
        raise Problem("nothing was changed")


def is_answerable() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty()
