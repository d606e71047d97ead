"""Calls the functions of one plugin's routes, in threads and on connections of the plugin's own.

So a function that hangs delays no other part of the service. After ``SECONDS`` its caller gets an answer, and its
connection is cut, so that it keeps no locks.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.exc import InternalError
from sqlalchemy.orm import Session

from core.operations import connections
from core.settings import Settings
from core.web.plugin_session import RouteSession, guard
from core.web.refusals import PluginBusy, PluginTooSlow

#: The longest time of a call, including its wait for a thread.
SECONDS = 10.0
#: The number of threads, and of connections, of each plugin.
THREADS = 2
#: The most calls of a plugin that are in progress or wait.
MOST_CALLS = 4
STATEMENT_SECONDS = 2.0


@dataclass(slots=True)
class Calls:
    """The calls of one plugin's routes."""

    plugin: str
    engine: Engine
    threads: ThreadPoolExecutor
    seconds: float = SECONDS
    _free: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MOST_CALLS), init=False)

    async def answer(self, work: Callable[[Session], bytes], *, is_reading: bool) -> bytes:
        """Return the result of ``work``, whose transaction is then committed.

        Raises PluginBusy, PluginTooSlow, or the error of ``work``. In each case nothing was changed.
        """
        if not self._free.acquire(blocking=False):
            raise PluginBusy(f"{MOST_CALLS} requests for the plugin {self.plugin} are in progress")
        session = RouteSession(self.engine, self.seconds, is_reading=is_reading)
        future = self.threads.submit(carry_out, session, work)
        future.add_done_callback(lambda _ended: self._free.release())
        asked = asyncio.wrap_future(future)
        await asyncio.wait([asked], timeout=self.seconds)
        if not asked.done() and session.end():
            asked.cancel()  # this cancels the call too, if it still waits for a thread
            raise PluginTooSlow(f"the plugin {self.plugin} did not answer within {self.seconds:g} seconds")
        return await asked


@contextmanager
def opened(configured: Settings, plugin: str) -> Iterator[Calls]:
    """Yield the calls of ``plugin``. At the end, close its connections, without waiting for threads that hang."""
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"rota-routes-{plugin}")
    with connections.ledger(configured, f"rota-routes-{plugin}", STATEMENT_SECONDS, pool_size=THREADS) as engine:
        guard(engine)
        try:
            yield Calls(plugin, engine, threads)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def carry_out(opened: RouteSession, work: Callable[[Session], bytes]) -> bytes:
    """Do ``work`` in a transaction, and commit it, unless the caller has waited too long and has ended the call."""
    with opened as session:
        result = harmless(work, session)
        if session.settle():
            session.commit()
        return result


def harmless(work: Callable[[Session], bytes], session: Session) -> bytes:
    """Return the result of ``work``. Replace an error that could end the process or that no future can hold.

    Examples are SystemExit and StopIteration.
    """
    try:
        return work(session)
    except InternalError as error:
        raise RuntimeError("PostgreSQL refused a statement; does a route with GET change something?") from error
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        raise RuntimeError(f"the route raised {type(error).__name__}") from error
