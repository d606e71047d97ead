"""Handles items in batches. Many threads add items, and one thread handles all waiting items in one round trip."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from core.observability.events import ThreadNotStarted, emit

Item = TypeVar("Item")


class Batcher(ABC, Generic[Item]):
    """A thread that starts when the first item is added, and ends when it is stopped and no item is left.

    If no thread can be started, the thread that adds an item handles the item itself. The next ``add`` tries again to
    start the batcher's thread.
    """

    #: The thread's name.
    name: ClassVar[str]
    #: The largest number of items in one batch.
    most_together: ClassVar[int]
    #: How long the first item of a batch waits for more items, in seconds.
    gather_seconds: ClassVar[float]
    #: The wait before a failed batch is tried again, in seconds.
    again_seconds: ClassVar[float]
    #: The longest time that ``stop`` waits, in seconds.
    stop_seconds: ClassVar[float]

    def __init__(self) -> None:
        self._waiting: deque[Item] = deque()
        self._come = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._has_said = False

    @abstractmethod
    def deal_with(self, batch: Sequence[Item]) -> None:
        """Handle ``batch``. If this raises, it is called again with the same items, and perhaps more items."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Log the error that ``deal_with`` raised."""

    def add(self, item: Item) -> None:
        """Add an item to the next batch."""
        self._waiting.append(item)
        if not self._come.is_set():
            self._come.set()
        if self._thread is None:
            self._start()

    def stop(self) -> None:
        """Handle the items that are left, with only one try."""
        self._stopping.set()
        self._come.set()
        if self._thread is not None:
            self._thread.join(self.stop_seconds)

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the machine allows no more threads
                self._say_once(error)
                while self._waiting and self._try():
                    pass
            else:
                self._thread = thread

    def _say_once(self, error: RuntimeError) -> None:
        if not self._has_said:
            emit(ThreadNotStarted(self.name, str(error)))
        self._has_said = True

    def _run(self) -> None:
        while not self._stopping.is_set() or self._waiting:
            self._come.wait()
            self._stopping.wait(self.gather_seconds)
            self._come.clear()
            if not self._try():
                return

    def _try(self) -> bool:
        """Handle all items. Return False if that failed and there is no time to try again."""
        try:
            self._deal_with_all()
        except Exception as error:  # noqa: BLE001 — a background loop outlives its errors
            self.failed(error)
            self._come.set()
            return not self._stopping.wait(self.again_seconds)
        return True

    def _deal_with_all(self) -> None:
        while self._waiting:
            # A copy, since other threads append meanwhile.
            batch = list(islice(self._waiting.copy(), self.most_together))
            self.deal_with(batch)
            for _ in batch:
                self._waiting.popleft()
