"""Handles output that cannot be written, for example to a full disk: prints one line and exits with status 1."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from core.cli import Problem

#: The errors of a failed write, except for a closed pipe. For a closed pipe, click exits with status 1 and no message.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def told() -> Iterator[None]:
    """Raise Problem if stdout cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        _give_up_stdout()
        raise Problem(f"the answer cannot be written: {error.strerror}") from None


def _give_up_stdout() -> None:
    """Discard buffered output, which Python would otherwise try to write again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
