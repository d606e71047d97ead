"""The watcher of a process, and its listeners.

The watcher is a thread that looks at the ledger while somebody listens: it starts with the first listener and ends with
the last. What it finds is handed to every listener, so the cost in PostgreSQL does not depend on their number. If a
listener is slow, its news is joined, so that its queue does not grow.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from core.observability.events import WebWatchFailed, emit
from core.web.live.watching import Ledger, News

#: The time between two looks, and between two looks while PostgreSQL is away.
EVERY_SECONDS, AWAY_SECONDS = 0.5, 2.0
#: The most listeners of a process.
MOST_LISTENERS = 250


class Listener:
    """Waits for news in the event loop of the server."""

    def __init__(self) -> None:
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
        self._nobody = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def is_watching(self) -> bool:
        """Whether the watcher is at work."""
        return self._thread is not None and self._thread.is_alive()

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Yield a listener of this process's watcher."""
        listener = Listener()
        with self._lock:
            self._listeners.add(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="live", daemon=True)
                self._thread.start()
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def _watch(self) -> None:
        ledger, is_away = Ledger(self._engine), False
        while not self._stopping.is_set():
            if self._is_alone():
                return
            try:
                news, was_away, is_away = ledger.look(), is_away, False
            except SQLAlchemyError as error:
                news, was_away, is_away = News(), is_away, True
                if not was_away:
                    emit(WebWatchFailed(type(error).__name__))
            if news or was_away != is_away:
                self._tell(news, is_away=is_away)
            self._stopping.wait(AWAY_SECONDS if is_away else EVERY_SECONDS)
        self._tell(News(), is_away=is_away, is_over=True)

    def _is_alone(self) -> bool:
        with self._lock:
            if self._listeners:
                return False
            self._thread = None
            return True

    def _tell(self, news: News, *, is_away: bool, is_over: bool = False) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.tell(news, is_away=is_away, is_over=is_over)
