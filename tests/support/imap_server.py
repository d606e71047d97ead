"""A small IMAP server on a real socket that misbehaves as a test tells it.

``folders`` has the messages. ``script`` may answer a command in another way, or end the connection. ``commands``
records the commands of clients, without the arguments of log-ins.
"""

import base64
import re
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

LINE = re.compile(r"(\S+) (?:(UID) )?(\S+)(?: (.*))?")
BODY = re.compile(r"BODY\.PEEK\[\](?:<(\d+)\.(\d+)>)?")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
DATE = "%d-%b-%Y %H:%M:%S %z"
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


class Hangup(Exception):
    """Raised by a script to send ``last`` and then end the connection."""

    def __init__(self, last: bytes = b"") -> None:
        super().__init__()
        self.last = last


@dataclass
class Folder:
    """Messages by UID, and the answers to EXAMINE."""

    uidvalidity: int = 1
    messages: dict[int, bytes] = field(default_factory=dict)
    dates: dict[int, str] = field(default_factory=dict)
    #: Sizes of messages that differ from their real sizes.
    sizes: dict[int, str] = field(default_factory=dict)
    #: A wrong UIDNEXT; 0 if the server does not send it.
    uidnext: int | None = None

    def fill(self, count: int, start: int = 1) -> None:
        """Add messages that differ from each other."""
        for uid in range(start, start + count):
            self.messages[uid] = mail(uid)

    @property
    def uids(self) -> list[int]:
        return sorted(self.messages)


def mail(number: int, size: int = 0) -> bytes:
    """A small message, or one of ``size`` bytes."""
    head = f"From: ann@example.org\r\nMessage-ID: <{number}@example.org>\r\nSubject: number {number}\r\n\r\n".encode()
    return head + b"x" * (size - len(head) - 2) + b"\r\n" if size else head + b"Hello\r\n"


Script = Callable[[str, str], bytes | None]


class ImapServer(socketserver.ThreadingTCPServer):
    """The server. Its only user is ``ann``, with the password ``sesame``."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 200

    def __init__(self, *, context: ssl.SSLContext | None = None, starttls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.context, self.starttls = context, starttls
        self.folders: dict[str, Folder] = {"INBOX": Folder()}
        self.users = {"ann": "sesame"}
        self.tokens: set[str] = set()
        self.script: Script = lambda command, arguments: None
        self.greeting = b"* OK ready\r\n"
        #: How long each command, and the greeting, is delayed, in seconds.
        self.delay = 0.0
        self.commands: list[str] = []
        self.logins = 0
        self.connections = 0
        #: The number of open connections.
        self.opened = 0
        self.bodies: list[int] = []
        self.locks = threading.Lock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def inbox(self) -> Folder:
        return self.folders["INBOX"]

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that closes the connection early."""


class Session(socketserver.StreamRequestHandler):
    """One connection."""

    disable_nagle_algorithm = True
    server: ImapServer

    def handle(self) -> None:
        self.folder = Folder()
        with self.server.locks:
            self.server.connections += 1
            self.server.opened += 1
        if self.server.context is not None:
            self.encrypt(self.server.context)
        time.sleep(self.server.delay)
        self.send(self.server.greeting)
        with suppress(ConnectionError, ssl.SSLError):
            try:
                while line := self.rfile.readline():
                    self.answer(line.decode().rstrip("\r\n"))
            except Hangup as hangup:
                self.wfile.write(hangup.last)

    def encrypt(self, context: ssl.SSLContext) -> None:
        self.request = context.wrap_socket(self.request, server_side=True)
        self.connection = self.request
        self.setup()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.connection.close()
        with self.server.locks:
            self.server.opened -= 1

    def send(self, data: bytes) -> None:
        self.wfile.write(data)

    def answer(self, line: str) -> None:
        found = LINE.fullmatch(line)
        assert found, line
        tag, uid, command, arguments = found[1], bool(found[2]), found[3].upper(), found[4] or ""
        shown = "" if command in {"LOGIN", "AUTHENTICATE"} else arguments
        self.server.commands.append(f"{'UID ' if uid else ''}{command} {shown}".strip())
        time.sleep(self.server.delay)
        own = self.server.script(command, arguments)
        if own is not None:
            self.send(own.replace(b"TAG", tag.encode()))
            return
        getattr(self, f"do_{command.lower()}")(tag, arguments, uid)

    def do_capability(self, tag: str, arguments: str, uid: bool) -> None:
        starttls = " STARTTLS" if self.server.starttls else ""
        self.send(f"* CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2{starttls}\r\n{tag} OK done\r\n".encode())

    def do_starttls(self, tag: str, arguments: str, uid: bool) -> None:
        assert self.server.starttls is not None
        self.send(f"{tag} OK begin\r\n".encode())
        self.encrypt(self.server.starttls)

    def do_login(self, tag: str, arguments: str, uid: bool) -> None:
        name, password = (re.sub(r"\\(.)", r"\1", quoted) or bare for quoted, bare in QUOTED.findall(arguments))
        self.let_in(tag, self.server.users.get(name) == password)

    def do_authenticate(self, tag: str, arguments: str, uid: bool) -> None:
        self.wfile.write(b"+ \r\n")
        given = base64.b64decode(self.rfile.readline()).decode()
        if arguments.startswith("XOAUTH2"):
            self.let_in(tag, given.removesuffix("\1\1").partition("auth=Bearer ")[2] in self.server.tokens)
        else:
            _, name, password = given.split("\0")
            self.let_in(tag, self.server.users.get(name) == password)

    def let_in(self, tag: str, is_right: bool) -> None:
        with self.server.locks:
            self.server.logins += 1
        answer = "OK welcome" if is_right else "NO [AUTHENTICATIONFAILED] wrong user or password"
        self.send(f"{tag} {answer}\r\n".encode())

    def do_examine(self, tag: str, arguments: str, uid: bool) -> None:
        name = arguments.strip('"')
        if name not in self.server.folders:
            self.send(f"{tag} NO [NONEXISTENT] no such folder\r\n".encode())
            return
        self.folder = self.server.folders[name]
        of = self.folder
        uidnext = max(of.uids, default=0) + 1 if of.uidnext is None else of.uidnext
        told = f"* OK [UIDNEXT {uidnext}] next\r\n" if uidnext else ""
        self.send(
            f"* {len(of.messages)} EXISTS\r\n* OK [UIDVALIDITY {of.uidvalidity}] valid\r\n{told}"
            f"{tag} OK [READ-ONLY] done\r\n".encode()
        )

    def do_search(self, tag: str, arguments: str, uid: bool) -> None:
        found = self.chosen(arguments.removeprefix("UID "), uid=True)
        self.send(f"* SEARCH {' '.join(map(str, found))}".rstrip().encode() + f"\r\n{tag} OK done\r\n".encode())

    def do_fetch(self, tag: str, arguments: str, uid: bool) -> None:
        chosen, _, items = arguments.partition(" ")
        for each in self.chosen(chosen, uid=uid):
            if each in self.folder.messages:
                self.send(self.fetched(each, items))
        self.send(f"{tag} OK done\r\n".encode())

    def do_logout(self, tag: str, arguments: str, uid: bool) -> None:
        raise Hangup(f"* BYE bye\r\n{tag} OK done\r\n".encode())

    def chosen(self, numbers: str, *, uid: bool) -> list[int]:
        """Return the UIDs that a set of numbers names. ``n:*`` names the last message even if its UID is less than
        n.
        """
        uids = self.folder.uids
        named: set[int] = set()
        for part in numbers.split(","):
            first, _, last = part.partition(":")
            low, high = (self.number(each, uid) for each in (first, last or first))
            low, high = min(low, high), max(low, high)
            named |= set(uids[low - 1 : high]) if not uid else {each for each in uids if low <= each <= high}
        return sorted(named)

    def number(self, text: str, uid: bool) -> int:
        if text != "*":
            return int(text)
        return max(self.folder.uids, default=0) if uid else len(self.folder.messages)

    def fetched(self, uid: int, items: str) -> bytes:
        body = self.folder.messages[uid]
        parts = [f"UID {uid}".encode()]
        if "RFC822.SIZE" in items:
            parts.append(f"RFC822.SIZE {self.folder.sizes.get(uid, len(body))}".encode())
        if "INTERNALDATE" in items:
            date = self.folder.dates.get(uid) or (NOON + timedelta(seconds=uid)).strftime(DATE)
            parts.append(f'INTERNALDATE "{date}"'.encode())
        if "HEADER.FIELDS" in items:
            line = re.search(rb"(?im)^message-id:.*\r\n", body)
            header = (line[0] if line else b"") + b"\r\n"
            parts.append(b"BODY[HEADER.FIELDS (MESSAGE-ID)] {%d}\r\n%b" % (len(header), header))
        if asked := BODY.search(items):
            with self.server.locks:
                self.server.bodies.append(uid)
            start = int(asked[1] or 0)
            piece = body[start : start + int(asked[2])] if asked[2] else body
            origin = f"<{start}>" if asked[2] else ""
            parts.append(f"BODY[]{origin} {{{len(piece)}}}\r\n".encode() + piece)
        number = self.folder.uids.index(uid) + 1
        return b"* %d FETCH (%b)\r\n" % (number, b" ".join(parts))


@contextmanager
def serving(**options: ssl.SSLContext | None) -> Iterator[ImapServer]:
    """Yield a server that runs in a thread."""
    with ImapServer(**options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@dataclass(frozen=True)
class Certificate:
    """The file of a certificate authority, and the context of a server with a certificate of this authority."""

    ca_file: Path
    context: ssl.SSLContext


def certificate(folder: Path, host: str) -> Certificate:
    """Return a self-signed certificate for ``host``."""
    from tests.support.certificates import self_signed

    pem, private = folder / f"{host}.pem", folder / f"{host}.key"
    for file, content in zip((pem, private), self_signed(host), strict=True):
        file.write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return Certificate(pem, context)
