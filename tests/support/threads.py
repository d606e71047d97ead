"""A machine that has no threads to give."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def no_threads_to_give() -> Iterator[None]:
    """Within it, no thread of this process can be started.

    What starts threads in C raises what it raises if the kernel refuses one. That the kernel really refuses is tried in
    processes of their own: CPython 3.11 keeps the state of a thread that was not started, under its starter's id, and
    no exception raised from outside reaches the starter from then on (PyThreadState_SetAsyncExc).
    """

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with mock.patch.object(threading, "_start_new_thread", refuse):
        yield
