"""Many threads add items; one thread deals with all that have come, in one round trip."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar, Generic, TypeVar

Item = TypeVar("Item")


class Batcher(ABC, Generic[Item]):
    """A thread that starts with the first item, and ends when it is stopped and nothing is left."""

    #: The thread's name.
    name: ClassVar[str]
    #: The most that are dealt with together.
    most_together: ClassVar[int]
    #: How long the first item waits for others, in seconds.
    gather_seconds: ClassVar[float]
    #: How long to wait before what failed is tried again, in seconds.
    again_seconds: ClassVar[float]
    #: How long ``stop`` waits, in seconds.
    stop_seconds: ClassVar[float]

    def __init__(self) -> None:
        self._waiting: deque[Item] = deque()
        self._come = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def deal_with(self, batch: Sequence[Item]) -> None:
        """Deal with ``batch``. If this raises, it is called again with the same, and perhaps more."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Say what ``deal_with`` raised."""

    def add(self, item: Item) -> None:
        """Have an item dealt with soon."""
        self._waiting.append(item)
        if not self._come.is_set():
            self._come.set()
        if self._thread is None:
            self._start()

    def stop(self) -> None:
        """Deal with what is left, trying once."""
        self._stopping.set()
        self._come.set()
        if self._thread is not None:
            self._thread.join(self.stop_seconds)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set() or self._waiting:
            self._come.wait()
            self._stopping.wait(self.gather_seconds)
            self._come.clear()
            try:
                self._deal_with_all()
            except Exception as error:  # noqa: BLE001 — a background loop outlives its errors
                self.failed(error)
                if self._stopping.wait(self.again_seconds):
                    return
                self._come.set()

    def _deal_with_all(self) -> None:
        while self._waiting:
            # A copy, since other threads append meanwhile.
            batch = list(islice(self._waiting.copy(), self.most_together))
            self.deal_with(batch)
            for _ in batch:
                self._waiting.popleft()
