"""Where what a command says cannot be written, as to a full disk: a line and exit status 1, and no traceback."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from core.cli import Problem

#: What is not a reader that has left; for that, click ends quietly, with exit status 1.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def told() -> Iterator[None]:
    """Raises Problem where stdout takes nothing more."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        _give_up_stdout()
        raise Problem(f"the answer cannot be written: {error.strerror}") from None


def _give_up_stdout() -> None:
    """Let what is still buffered go nowhere, or Python would try to write it once more as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
