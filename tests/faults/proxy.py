"""A TCP proxy between a process and a server. It can cut connections, block one direction, and delay data.

While a direction is blocked, the proxy holds back its bytes, including the end of the connection, and delivers them
later, as TCP does when a network works again. Until then, neither side knows about the other.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["to server", "from server"]
DIRECTIONS: tuple[Direction, ...] = ("to server", "from server")
CHUNK = 65_536
#: The path of a Unix socket, or a host and a port.
Address = str | tuple[str, int]


class Loop:
    """The one thread in which all proxies run."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop, and return its result."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(10)

    def close(self) -> None:
        """End all proxies and the loop."""
        self.do(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=5) if others else None


@dataclass
class Proxy:
    """A listening port, and the server to which it leads."""

    loop: Loop
    behind: Callable[[], Address]
    port: int = 0
    delay_seconds: float = 0
    _gates: dict[Direction, asyncio.Event] = field(default_factory=dict)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    def start(self) -> "Proxy":
        """Listen on a free port of 127.0.0.1."""
        self.loop.do(self._start())
        return self

    async def _start(self) -> None:
        self._gates = {direction: asyncio.Event() for direction in DIRECTIONS}
        for gate in self._gates.values():
            gate.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection. New connections can be made."""
        self.loop.do(self._cut())

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def silence(self, direction: Direction) -> None:
        """Block one direction."""
        self.loop.do(self._set(direction, is_open=False))

    def heal(self) -> None:
        """Deliver everything, at once."""
        self.delay_seconds = 0
        for direction in DIRECTIONS:
            self.loop.do(self._set(direction, is_open=True))

    def stop(self) -> None:
        """Stop listening, and end every connection."""
        self.loop.do(self._stop())

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()

    async def _set(self, direction: Direction, *, is_open: bool) -> None:
        gate = self._gates[direction]
        gate.set() if is_open else gate.clear()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._writers.add(to_client)
        to_server: asyncio.StreamWriter | None = None
        try:
            await self._gates["to server"].wait()
            server, to_server = await self._connect()
            self._writers.add(to_server)
            await asyncio.gather(
                self._pump(client, to_server, "to server"), self._pump(server, to_client, "from server")
            )
        except OSError:
            to_client.transport.abort()
        except asyncio.CancelledError:
            pass
        finally:
            for writer in filter(None, (to_client, to_server)):
                self._writers.discard(writer)
                writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.behind()
        if isinstance(address, str):
            return await asyncio.open_unix_connection(address)
        return await asyncio.open_connection(*address)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
        while chunk := await _read(reader):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            await self._gates[direction].wait()
            writer.write(chunk)
            await writer.drain()
        await self._gates[direction].wait()
        with suppress(OSError):
            writer.write_eof()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return the next data, or nothing if the connection has ended in any way."""
    try:
        return await reader.read(CHUNK)
    except OSError:
        return b""
