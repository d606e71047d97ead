"""Surrounds every request: adds its id, the prefix and safe headers, limits its body, and handles unexpected errors."""

import asyncio
import secrets
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.observability import metrics
from core.observability.events import WebFailed, emit
from core.web import problems

#: The largest body of a request, in bytes. The arguments of a run take at most 64 KiB.
LARGEST_BODY = 256 * 1024
#: A body must arrive within this many seconds.
BODY_SECONDS = 10.0
#: The most requests that may be in progress, not counting requests for the health.
MOST_REQUESTS = 40

#: Forbids scripts, styles and images of other servers, frames, and forms that are sent to other servers.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Envelope:
    """The layer around the routes of the application."""

    def __init__(self, app: ASGIApp, prefix: str = "") -> None:
        self._app = app
        self._prefix = prefix
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A WebSocket is refused, since the service has none."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        scope, began = self._addressed(scope), time.monotonic()
        answer = Answer(send, {**HEADERS, "X-Request-Id": scope["state"]["request_id"]})
        await self._answered(scope, receive, answer)
        if not is_stream(scope):
            metrics.web_request(route_of(scope), answer.status, time.monotonic() - began)

    async def _answered(self, scope: Scope, receive: Receive, answer: "Answer") -> None:
        if is_of_health(scope) or is_stream(scope):
            await self._guarded(scope, receive, answer)
            return
        if self._in_progress >= MOST_REQUESTS:
            said = f"{self._in_progress} requests are in progress"
            await problems.answer(scope, problems.BUSY, said)(scope, receive, answer)
            return
        self._in_progress += 1
        try:
            await self._with_body(scope, receive, answer)
        finally:
            self._in_progress -= 1

    def _addressed(self, scope: Scope) -> Scope:
        """Return ``scope`` with an id, and with the whole path, even if a proxy has removed the prefix.

        The prefix alone is the path ``/`` below it.
        """
        path, state = str(scope["path"]), {**scope.get("state", {}), "request_id": secrets.token_hex(8)}
        prefix = str(state.get("prefix", self._prefix))
        is_whole = path == prefix or path.startswith(f"{prefix}/")
        whole = path if is_whole else prefix + path
        return {
            **scope,
            "path": f"{prefix}/" if whole == prefix else whole,
            "root_path": prefix,
            "state": state,
        }

    async def _with_body(self, scope: Scope, receive: Receive, answer: "Answer") -> None:
        try:
            body = await asyncio.wait_for(read(receive), BODY_SECONDS)
        except TimeoutError:
            said = f"it took longer than {BODY_SECONDS:g} seconds"
            await problems.answer(scope, problems.TOO_LATE, said, headers=CLOSE)(scope, receive, answer)
        except BodyTooLarge:
            said = f"at most {LARGEST_BODY} bytes are read"
            await problems.answer(scope, problems.TOO_LARGE, said, headers=CLOSE)(scope, receive, answer)
        except Disconnected:
            return
        else:
            await self._guarded(scope, replaying(body, receive), answer)

    async def _guarded(self, scope: Scope, receive: Receive, answer: "Answer") -> None:
        try:
            await self._app(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 — the edge of the application
            emit(WebFailed(scope["method"], route_of(scope), type(error).__name__, scope["state"]["request_id"]), error)


CLOSE = {"Connection": "close"}


class BodyTooLarge(Exception):
    """The body has more bytes than the service reads."""


class Disconnected(Exception):
    """The client has closed the connection."""


class Answer:
    """Sends an answer with the service's own headers."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        #: 499, as in nginx, if the client closes the connection before the answer.
        self.status = 499

    async def __call__(self, message: Message) -> None:
        """Send one message."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            self._add_headers(message)
        await self._send(message)

    def _add_headers(self, message: MutableMapping[str, Any]) -> None:
        given = {name.lower() for name, _ in message.get("headers", [])}
        ours = [(name.lower().encode(), value.encode()) for name, value in self._headers.items()]
        message["headers"] = [*message.get("headers", []), *(pair for pair in ours if pair[0] not in given)]


async def read(receive: Receive) -> bytes:
    """Return the body. Raises BodyTooLarge or Disconnected."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY:
            raise BodyTooLarge
        if not message.get("more_body"):
            return b"".join(parts)


def replaying(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that first returns the body that was read, and then the later messages."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def is_of_health(scope: Scope) -> bool:
    """Return whether a request asks for the health, which is answered even if the service is busy."""
    path = str(scope["path"]).removeprefix(scope["root_path"])
    return path in {"/health", "/health/live"}


def is_stream(scope: Scope) -> bool:
    """Return whether a request asks for the stream of events, which lasts. The number of streams has its own limit."""
    return str(scope["path"]).removeprefix(scope["root_path"]) == "/events"


def route_of(scope: Scope) -> str:
    """Return the route of a request, such as ``/api/v1/runs/{run_id}``. The path may contain personal data; a route
    does not.

    FastAPI's route may lack the prefix of its router, so the prefix is taken from the path.
    """
    found = getattr(scope.get("route"), "path", None)
    if found is None:
        return "(none)"
    segments, known = str(scope["path"]).removeprefix(scope["root_path"]).split("/"), str(found).split("/")[1:]
    return "/".join([*segments[: -len(known)], *known])
