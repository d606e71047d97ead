"""A machine that has no threads to give."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: No machine has so much address space for a stack, in bytes.
FAR_TOO_MUCH = 1 << 46


@contextmanager
def no_threads_to_give() -> Iterator[None]:
    """Within it, no thread of this process can be started: the kernel refuses its stack."""
    former = threading.stack_size(FAR_TOO_MUCH)
    try:
        yield
    finally:
        threading.stack_size(former)
