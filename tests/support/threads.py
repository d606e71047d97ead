"""Simulates a machine that allows no more threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def no_threads_to_give() -> Iterator[None]:
    """In the block, no thread of this process can be started. A function in C that starts threads raises the error that
    it raises when the kernel refuses a thread.

    Tests of a real refusal run in processes of their own: CPython 3.11 keeps the state of a thread that was not started
    under the id of its starter, and then no exception raised from outside reaches the starter
    (PyThreadState_SetAsyncExc).
    """

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with mock.patch.object(threading, "_start_new_thread", refuse):
        yield
