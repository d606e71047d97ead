"""The watcher of a process, and its listeners.

The watcher is a thread that looks at the ledger while somebody listens: it starts with the first listener and ends with
the last. What it finds is handed to every listener, so the cost in PostgreSQL does not depend on their number. If a
listener is slow, its news is joined, so that its queue does not grow.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2.errors import QueryCanceled
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from core import database
from core.observability.events import WebWatchFailed, emit
from core.web.live.watching import Ledger, News

#: The time between two looks, and the time after a look that failed.
EVERY_SECONDS, FAILED_SECONDS = 0.5, 2.0
#: The most listeners of a process, and of one caller.
MOST_LISTENERS, MOST_OF_CALLER = 250, 50


class Listener:
    """Waits for news in the event loop of the server."""

    def __init__(self, name: str) -> None:
        #: The caller.
        self.name = name
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._news = News()
        #: Whether the process is stopping.
        self.is_over = False
        self.is_away = False

    def tell(self, news: News, *, is_away: bool, is_over: bool = False) -> None:
        """Hand over news, from another thread."""
        try:
            self._loop.call_soon_threadsafe(self._hear, news, is_away, is_over)
        except RuntimeError:  # the event loop has ended, and nobody listens
            return

    def _hear(self, news: News, is_away: bool, is_over: bool) -> None:
        self._news = self._news.joined(news)
        self.is_away, self.is_over = is_away, self.is_over or is_over
        self._rung.set()

    async def wait(self, seconds: float) -> News:
        """Return the news since the last call, or none if nothing has happened within ``seconds``."""
        try:
            await asyncio.wait_for(self._rung.wait(), seconds)
        except TimeoutError:
            return News()
        self._rung.clear()
        news, self._news = self._news, News()
        return news


class Hub:
    """The listeners of a process, and the thread that watches the ledger for them."""

    def __init__(self, engine: Engine, stopping: threading.Event) -> None:
        self._engine = engine
        self._stopping = stopping
        self._lock = threading.Lock()
        self._listeners: set[Listener] = set()
        self._thread: threading.Thread | None = None
        self._is_away = False
        #: The type of the error of the last look, if it failed.
        self._failure: str | None = None

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def is_watching(self) -> bool:
        """Whether the watcher is at work."""
        return self._thread is not None and self._thread.is_alive()

    def number_of(self, name: str) -> int:
        """Return how many listeners the caller ``name`` has."""
        with self._lock:
            return sum(listener.name == name for listener in self._listeners)

    @contextmanager
    def listening(self, name: str) -> Iterator[Listener]:
        """Yield a listener of this process's watcher, for the caller ``name``."""
        listener = Listener(name)
        with self._lock:
            if not self.is_watching:
                self._thread = threading.Thread(target=self._watch, name="live", daemon=True)
                self._thread.start()
            listener.is_away = self._is_away
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def _watch(self) -> None:
        ledger = Ledger(self._engine)
        while not self._stopping.is_set():
            if self._is_alone():
                return
            news, was_away, is_away = News(), self._is_away, False
            try:
                news, failure = ledger.look(), None
            except Exception as error:  # noqa: BLE001 — the pages of everybody depend on the next look
                failure, is_away = type(error).__name__, is_lost(error)
            if failure not in {None, self._failure}:
                emit(WebWatchFailed(str(failure)))
            self._failure = failure
            if news or was_away != is_away:
                self._tell(news, is_away=is_away)
            self._stopping.wait(FAILED_SECONDS if failure else EVERY_SECONDS)
        self._tell(News(), is_away=self._is_away, is_over=True)

    def _is_alone(self) -> bool:
        with self._lock:
            if self._listeners:
                return False
            self._thread, self._is_away, self._failure = None, False, None
            return True

    def _tell(self, news: News, *, is_away: bool, is_over: bool = False) -> None:
        with self._lock:
            self._is_away = is_away
            listeners = list(self._listeners)
        for listener in listeners:
            listener.tell(news, is_away=is_away, is_over=is_over)


def is_lost(error: Exception) -> bool:
    """Return whether PostgreSQL cannot be reached. A statement that takes too long is no sign of that."""
    is_slow = isinstance(getattr(error, "orig", None), QueryCanceled)
    return isinstance(error, DBAPIError) and database.is_of_server(error) and not is_slow
