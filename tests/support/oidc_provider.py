"""OpenID Connect providers: a correct one in a process of its own, and one in this process that is wrong on purpose."""

import base64
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from tests.support.eventually import eventually
from tests.support.service import free_port


@contextmanager
def real(*users: dict[str, Any]) -> Iterator[str]:
    """Yield the issuer of a server of the package oidc-provider-mock, which knows ``users``."""
    port = free_port()
    options = [option for user in users for option in ("--user-claims", json.dumps(user))]
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "true", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            issuer = f"http://localhost:{port}"
            eventually(lambda: answers(issuer), within=60)
            yield issuer
        finally:
            process.kill()


def answers(issuer: str) -> bool:
    try:
        return httpx2.get(f"{issuer}/jwks", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def consent(address: str, sub: str) -> str:
    """Log in at the provider as ``sub``. Return the address to which the provider sends the browser back."""
    answer = httpx2.post(address, data={"sub": sub}, timeout=30)
    assert answer.status_code == 302, answer.text
    return answer.headers["Location"]


class Wrong:
    """A provider whose answers a test changes."""

    def __init__(self, port: int) -> None:
        self.issuer = f"http://localhost:{port}"
        self.key = RSAKey.generate_key(2048, {"kid": "first"})
        self.published = [self.key]
        #: Keys that are published before the others, unchanged.
        self.others: list[Any] = []
        self.claims: dict[str, Any] = {}
        self.header: dict[str, Any] = {}
        self.token: str | None = None
        self.metadata: dict[str, Any] = {}
        #: The status of every answer, and the delay before every answer.
        self.status, self.seconds = 200, 0.0
        #: Answers to requests for tokens wait until this is set.
        self.gives = threading.Event()
        self.gives.set()
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.nonce = ""

    def code(self, address: str, **changed: str) -> str:
        """Return the query with which the provider would send back a browser that went to ``address``."""
        asked = {name: found[0] for name, found in parse_qs(urlsplit(address).query).items()}
        self.nonce = asked["nonce"]
        return urlencode({"code": "c", "state": asked["state"], **changed})

    def rotate(self, kid: str) -> None:
        """Sign with a new key, and publish it."""
        self.key = RSAKey.generate_key(2048, {"kid": kid})
        self.published = [self.key]

    def answer(self, path: str) -> dict[str, Any]:
        if path.startswith("/.well-known"):
            ends = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/jwks"}
            return {"issuer": self.issuer, **{name: self.issuer + end for name, end in ends.items()}, **self.metadata}
        if path == "/jwks":
            return {"keys": [*self.others, *(key.as_dict(private=False) for key in self.published)]}
        return {"access_token": "a", "token_type": "Bearer", "id_token": self.token or self.id_token()}

    def id_token(self) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": "rota", "sub": "ann", "iat": now, "exp": now + 300, "nonce": self.nonce,
                  "groups": ["admins"], **self.claims}  # fmt: skip
        for name in {"exp", "iat", "nbf"} & self.claims.keys():  # these times are given in seconds from now
            claims[name] = None if self.claims[name] is None else now + self.claims[name]
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": "RS256", "kid": "first" if self.key.kid == "first" else self.key.kid, **self.header}
        header = {name: value for name, value in header.items() if value is not None}
        if header["alg"] == "none":
            parts = [json.dumps({"alg": "none"}), json.dumps(claims)]
            return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts) + "."
        if header["alg"] == "HS256":  # signed with the public key, which everybody knows
            shared = OctKey.import_key(json.dumps(self.published[0].as_dict(private=False)))
            return jwt.encode(header, claims, shared, algorithms=["HS256"])
        return jwt.encode(header, claims, self.key, algorithms=[header["alg"]])


@contextmanager
def wrong() -> Iterator[Wrong]:
    """Yield a provider in this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server requires
            provider.asked.append(self.path)
            time.sleep(provider.seconds)
            body = json.dumps(provider.answer(self.path)).encode()
            self.send_response(provider.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            provider.gives.wait(60)
            provider.forms.append({**{name: found[0] for name, found in form.items()},
                                   "authorization": self.headers.get("Authorization", "")})  # fmt: skip
            self.do_GET()

        def log_message(self, *_words: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = Wrong(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)


def hidden(text: str) -> str:
    """Return the signed tokens in a log, as a text."""
    return str(re.findall(r"eyJ[A-Za-z0-9_-]{20,}", text))
