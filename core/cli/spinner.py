"""A line with a spinner on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


@contextmanager
def spinning() -> Iterator[Callable[[str], None]]:
    """Show a spinner and a line on stderr. Yield the function that sets the line."""
    with Console(stderr=True).status("") as status:
        yield lambda line: status.update(escape(line))
