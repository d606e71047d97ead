"""The socket of the HTTP service."""

import asyncio
import socket

from core.web import listeners


def test_answers_are_not_delayed():
    """asyncio turns off Nagle's algorithm for the connections of a socket that names its protocol. With the algorithm,
    each answer on a kept connection came 40 ms late.
    """

    async def nodelay_of_accepted(listener: socket.socket) -> int:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            answer.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            found = await asyncio.wait_for(answer, 10)
            writer.close()
            return found

    with listeners.on_port("127.0.0.1", 0) as listener:
        assert asyncio.run(nodelay_of_accepted(listener)) == 1
