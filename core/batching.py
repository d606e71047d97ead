"""Many threads add items; one thread deals with all that have come, in one round trip."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from core.observability.events import ThreadNotStarted, emit

Item = TypeVar("Item")


class Batcher(ABC, Generic[Item]):
    """A thread that starts with the first item, and ends when it is stopped and nothing is left.

    Where the machine has no thread to give, the thread that adds an item deals with it, and the next one tries again to
    start one.
    """

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
        self._has_said = False

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
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a limit of the machine
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
        """Deal with all; False once it has failed and there is no time to try again."""
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
