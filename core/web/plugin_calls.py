"""Calls the functions of one plugin's routes, in threads and on connections of the plugin's own.

So a function that hangs delays no other part of the service. Its caller gets an answer after ``SECONDS``, and its
transaction is rolled back when it ends.
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
from core.web.refusals import PluginBusy, PluginTooSlow

#: The longest time of a call, including its wait for a thread.
SECONDS = 10.0
#: The threads and connections of each plugin, and the most calls that may be in progress or wait.
THREADS = 2
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

        Raises PluginBusy or PluginTooSlow, and nothing was changed; or raises the error of ``work``.
        """
        if not self._free.acquire(blocking=False):
            raise PluginBusy(f"{MOST_CALLS} requests for the plugin {self.plugin} are in progress")
        decision = threading.Lock()
        future = self.threads.submit(carry_out, self.engine, work, decision, is_reading)
        future.add_done_callback(lambda _ended: self._free.release())
        asked = asyncio.wrap_future(future)
        await asyncio.wait([asked], timeout=self.seconds)
        if not asked.done() and decision.acquire(blocking=False):
            asked.cancel()  # also the call, if it still waits for a thread
            raise PluginTooSlow(f"the plugin {self.plugin} did not answer within {self.seconds:g} seconds")
        return await asked


@contextmanager
def opened(configured: Settings, plugin: str) -> Iterator[Calls]:
    """Yield the calls of ``plugin``. At the end its connections are closed; threads that hang are not waited for."""
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"rota-routes-{plugin}")
    with connections.ledger(configured, f"rota-routes-{plugin}", STATEMENT_SECONDS, pool_size=THREADS) as engine:
        try:
            yield Calls(plugin, engine, threads)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def carry_out(engine: Engine, work: Callable[[Session], bytes], decision: "threading.Lock", is_reading: bool) -> bytes:
    """Do ``work`` in a transaction, and commit it, unless the caller took ``decision`` since it waited too long."""
    with Session(engine, expire_on_commit=False) as session:
        if is_reading:
            session.connection().exec_driver_sql("SET TRANSACTION READ ONLY")
        result = harmless(work, session)
        if decision.acquire(blocking=False):
            session.commit()
        return result


def harmless(work: Callable[[Session], bytes], session: Session) -> bytes:
    """Return what ``work`` returns. An error that could end the process, or that no future can hold, becomes another.

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
