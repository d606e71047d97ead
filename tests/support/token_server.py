"""An OAuth2 token server on a real socket, which answers as a test tells it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


class TokenServer(ThreadingHTTPServer):
    """Answers requests for tokens, and records them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.asked: list[dict[str, str]] = []
        self.answer: tuple[int, Any] = (200, {"access_token": "access-1", "expires_in": 3600})
        #: Functions that are called before each answer, and after each answer.
        self.looks: Callable[[], None] = lambda: None
        self.has_answered: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/token"


class Answering(BaseHTTPRequestHandler):
    """The handler of one request."""

    server: TokenServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append({name: values[0] for name, values in parse_qs(body).items()})
        self.server.looks()
        status, answer = self.server.answer
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.server.has_answered()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def granting() -> Iterator[TokenServer]:
    """Yield a server that runs in a thread."""
    with TokenServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)
