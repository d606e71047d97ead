"""The HTTP server of the simulated gateway."""

import json
import os
import socket
import ssl
import struct
import threading
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from plugins.invites.gateway.simulated.faults import Faults
from plugins.invites.gateway.simulated.teams import Reply, Teams, refusal

#: A hanging request is held for this long, unless the fault says otherwise.
HANG_SECONDS = 30.0
WAIT_SECONDS = 1
PAGE = 100
#: On close, TCP drops what is unsent and sends a reset.
RESET = struct.pack("ii", 1, 0)


class SimulatedGateway(ThreadingHTTPServer):
    """A gateway on a socket of this machine."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, teams: Teams, token: str | None = None, page: int = PAGE) -> None:
        super().__init__(("127.0.0.1", port), Handling)
        self.teams, self.faults, self.token, self.page = teams, Faults(), token, page
        self.is_closing = threading.Event()

    def encrypt(self, certificate: str) -> None:
        """Speak TLS with the certificate and the key in a file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about a client that has gone."""


def without_one(reply: Reply) -> Reply:
    """Leave the first member out of a page, and count one less."""
    if reply.status != 200:
        return reply
    return Reply(200, {**reply.body, "members": reply.body["members"][1:], "total": reply.body["total"] - 1})


class Handling(BaseHTTPRequestHandler):
    """The requests of one connection."""

    server: SimulatedGateway
    protocol_version = "HTTP/1.1"
    timeout = 120

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        url = urlsplit(self.path)
        match [unquote(part) for part in url.path.strip("/").split("/")]:
            case ["_control", action]:
                self._send(self._control(action, body))
            case _ if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
                self._send(refusal(401, "bad_token"))
            case ["teams", team, "invitations"]:
                self._with_fault("invite", lambda: self.server.teams.invite(self._id, team, body["email"]))
            case ["teams", team, "members", email] if self.command == "DELETE":
                self._with_fault("remove", lambda: self.server.teams.remove(self._id, team, email))
            case ["teams", team, "members", email]:
                self._with_fault("find", lambda: self.server.teams.find(team, email))
            case ["teams", team, "members"]:
                after = parse_qs(url.query).get("after", [""])[0]
                self._with_fault("list", lambda: self.server.teams.page(team, after, self.server.page))
            case _:
                self._send(refusal(404, "not_found"))

    @property
    def _id(self) -> str:
        return self.headers["Idempotency-Key"]

    def _control(self, action: str, body: Any) -> Reply:
        """Do what a test or the sample data wants."""
        match action:
            case "team":
                return self.server.teams.put_team(body["team"], body["seats"], body.get("members", {}))
            case "accept":
                return self.server.teams.accept(body["team"], body["email"])
            case "leave":
                return self.server.teams.leave(body["team"], body["email"])
            case "members":
                return self.server.teams.everybody(body["team"])
            case "faults":
                self.server.faults.order(body)
            case "chance":
                self.server.faults.choose(body["share"], body["kinds"], body["seed"], body["seconds"])
            case "reset":
                self.server.teams.reset()
                self.server.faults.reset()
            case "sent":
                return self.server.teams.sent()
        return Reply(200, {})

    def _with_fault(self, request: str, work: Any) -> None:
        """Do the work of a request, with the fault that is its turn."""
        fault = self.server.faults.take(request)
        kind, seconds = fault["kind"], fault.get("seconds")
        match kind:
            case "hang_before" | "late" | "reset_before":
                self._stay_silent(kind, seconds)
                if kind == "late":
                    work()
            case "limited" | "limited_date" | "busy" | "failed":
                self._put_off(kind, int(seconds or WAIT_SECONDS))
            case "forget":
                self.server.teams.forget_ids()
                self._send(work())
            case "omit_page":
                self._send(self._without_first_page(work()))
            case "hide_one":
                self._send(without_one(work()))
            case _:
                self._spoil(kind, seconds, work())

    def _stay_silent(self, kind: str, seconds: float | None) -> None:
        if kind.startswith("hang") or kind == "late":
            self.server.is_closing.wait(HANG_SECONDS if seconds is None else seconds)
        self._reset()

    def _put_off(self, kind: str, seconds: int) -> None:
        if kind == "failed":
            return self._send(refusal(500, "failed"))
        after = str(seconds)
        if kind == "limited_date":
            at = parsedate_to_datetime(self.date_time_string()) + timedelta(seconds=seconds)
            after = format_datetime(at, usegmt=True)
        return self._send(refusal(503 if kind == "busy" else 429, "later"), after)

    def _spoil(self, kind: str, seconds: float | None, reply: Reply) -> None:
        """Send the answer to work that was done, with a fault of the answer."""
        match kind:
            case "hang_after" | "reset_after":
                self._stay_silent(kind, seconds)
            case "failed_after":
                self._send(refusal(502, "bad_gateway"))
            case "truncated":
                self._send(reply, lacking=1)
            case "unreadable":
                self._send_bytes(reply.status if reply.status != 204 else 200, b"<html>It worked</html>")
            case "huge":
                self._send_bytes(reply.status if reply.status != 204 else 200, b"x" * 2_000_000)
            case "slow":
                self._send(reply, pause=0.2)
            case _:
                self._send(reply)

    def _without_first_page(self, reply: Reply) -> Reply:
        if reply.status != 200 or not reply.body["next"]:
            return reply
        team = unquote(urlsplit(self.path).path.strip("/").split("/")[1])
        return self.server.teams.page(team, reply.body["next"], self.server.page)

    def _send(self, reply: Reply, after: str | None = None, *, lacking: int = 0, pause: float = 0.0) -> None:
        data = b"" if reply.body is None else json.dumps(reply.body).encode()
        self._send_bytes(reply.status, data, after, lacking=lacking, pause=pause)

    def _send_bytes(
        self, status: int, data: bytes, after: str | None = None, *, lacking: int = 0, pause: float = 0.0
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        if after is not None:
            self.send_header("Retry-After", after)
        self.end_headers()
        if not pause:
            self.wfile.write(data[: len(data) - lacking])
        else:
            for number in range(len(data)):
                self.wfile.write(data[number : number + 1])
                self.server.is_closing.wait(pause)
        self.close_connection = self.close_connection or bool(lacking)

    def _reset(self) -> None:
        """Close the connection with a reset, so that the client notices it at once."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        os.close(self.connection.detach())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
