"""The teams of the simulated gateway, their members, the known ids, and the invitations that were sent."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TABLES = """
    CREATE TABLE IF NOT EXISTS teams (name TEXT PRIMARY KEY, seats INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS members (team TEXT, email TEXT, state TEXT, PRIMARY KEY (team, email));
    CREATE TABLE IF NOT EXISTS ids (id TEXT PRIMARY KEY, request TEXT, status INTEGER, error TEXT);
    CREATE TABLE IF NOT EXISTS sent (number INTEGER PRIMARY KEY, team TEXT, email TEXT);
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """A status and the JSON value of an answer."""

    status: int
    body: Any = None


def refusal(status: int, code: str) -> Reply:
    """Return the answer of an error."""
    return Reply(status, {"error": code})


@dataclass
class Teams:
    """All that the gateway knows. Each request is one transaction, and requests are answered one after another."""

    path: str = ":memory:"
    #: Whether a person who is invited already gets another e-mail, instead of 409.
    resends: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.rows = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        self.rows.executescript(TABLES)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the lock, and commit at the end."""
        with self.lock:
            self.rows.execute("BEGIN")
            try:
                yield self.rows
            except BaseException:
                self.rows.execute("ROLLBACK")
                raise
            self.rows.execute("COMMIT")

    def put_team(self, team: str, seats: int, members: dict[str, str]) -> Reply:
        """Make a team, or change its seats, and add members that nobody has invited through the API."""
        with self.transaction() as rows:
            rows.execute("INSERT OR REPLACE INTO teams VALUES (?, ?)", (team, seats))
            rows.executemany(
                "INSERT OR REPLACE INTO members VALUES (?, ?, ?)", [(team, *each) for each in members.items()]
            )
        return Reply(200, {})

    def invite(self, request_id: str, team: str, email: str) -> Reply:
        """Invite a person once for each id. An id that is known gets its first answer again."""
        with self.transaction() as rows:
            known = _known(rows, request_id, f"invite {team} {email}")
            return known or _remember(rows, request_id, f"invite {team} {email}", self._invite(rows, team, email))

    def _invite(self, rows: sqlite3.Connection, team: str, email: str) -> Reply:
        there = rows.execute("SELECT 1 FROM members WHERE team = ? AND email = ?", (team, email)).fetchone()
        if there and not self.resends:
            return refusal(409, "already_member")
        seats = _seats(rows, team)
        if not seats:
            return refusal(404, "no_team")
        if not there and rows.execute("SELECT count(*) FROM members WHERE team = ?", (team,)).fetchone()[0] >= seats[0]:
            return refusal(409, "no_seats")
        if "@" not in email:
            return refusal(422, "bad_email")
        rows.execute("INSERT OR IGNORE INTO members VALUES (?, ?, 'invited')", (team, email))
        rows.execute("INSERT INTO sent (team, email) VALUES (?, ?)", (team, email))
        return _reply(201, None, email)

    def remove(self, request_id: str, team: str, email: str) -> Reply:
        """Remove a person."""
        with self.transaction() as rows:
            known = _known(rows, request_id, f"remove {team} {email}")
            return known or _remember(rows, request_id, f"remove {team} {email}", _remove(rows, team, email))

    def find(self, team: str, email: str) -> Reply:
        """Return one person."""
        with self.transaction() as rows:
            found = rows.execute("SELECT state FROM members WHERE team = ? AND email = ?", (team, email)).fetchone()
        return Reply(200, {"email": email, "state": found[0]}) if found else refusal(404, "no_member")

    def page(self, team: str, after: str, size: int) -> Reply:
        """Return one page of the members, in the order of their addresses."""
        with self.transaction() as rows:
            if not _seats(rows, team):
                return refusal(404, "no_team")
            total = rows.execute("SELECT count(*) FROM members WHERE team = ?", (team,)).fetchone()[0]
            found = rows.execute(
                "SELECT email, state FROM members WHERE team = ? AND email > ? ORDER BY email LIMIT ?",
                (team, after, size + 1),
            ).fetchall()
        listed = [{"email": email, "state": state} for email, state in found[:size]]
        following = listed[-1]["email"] if len(found) > size else None
        return Reply(200, {"members": listed, "total": total, "next": following})

    def accept(self, team: str, email: str) -> Reply:
        """Let a person accept an invitation."""
        with self.transaction() as rows:
            rows.execute("UPDATE members SET state = 'member' WHERE team = ? AND email = ?", (team, email))
        return Reply(200, {})

    def leave(self, team: str, email: str) -> Reply:
        """Let a person leave a team."""
        with self.transaction() as rows:
            rows.execute("DELETE FROM members WHERE team = ? AND email = ?", (team, email))
        return Reply(200, {})

    def everybody(self, team: str) -> Reply:
        """Return the states of all members by their addresses."""
        with self.transaction() as rows:
            found = rows.execute("SELECT email, state FROM members WHERE team = ?", (team,)).fetchall()
        return Reply(200, dict(found))

    def reset(self) -> None:
        """Forget everything."""
        with self.transaction() as rows:
            for table in ("teams", "members", "ids", "sent"):
                rows.execute(f"DELETE FROM {table}")  # noqa: S608 — constants

    def forget_ids(self) -> None:
        """Forget all ids, as if they had expired."""
        with self.transaction() as rows:
            rows.execute("DELETE FROM ids")

    def sent(self) -> Reply:
        """Return how often each person was sent an invitation, by team and address."""
        with self.transaction() as rows:
            found = rows.execute("SELECT team, email, count(*) FROM sent GROUP BY team, email").fetchall()
        return Reply(200, [list(each) for each in found])


def _known(rows: sqlite3.Connection, request_id: str, request: str) -> Reply | None:
    found = rows.execute("SELECT request, status, error FROM ids WHERE id = ?", (request_id,)).fetchone()
    if found is None:
        return None
    if found[0] != request:
        return refusal(422, "id_reused")
    return _reply(found[1], found[2], request.rpartition(" ")[2])


def _remember(rows: sqlite3.Connection, request_id: str, request: str, reply: Reply) -> Reply:
    error = (reply.body or {}).get("error")
    rows.execute("INSERT INTO ids VALUES (?, ?, ?, ?)", (request_id, request, reply.status, error))
    return reply


def _reply(status: int, error: str | None, email: str) -> Reply:
    if error is not None:
        return refusal(status, error)
    return Reply(status, {"email": email, "state": "invited"} if status == 201 else None)


def _remove(rows: sqlite3.Connection, team: str, email: str) -> Reply:
    removed = rows.execute("DELETE FROM members WHERE team = ? AND email = ?", (team, email)).rowcount
    return Reply(204) if removed else refusal(404, "no_member")


def _seats(rows: sqlite3.Connection, team: str) -> tuple[int] | None:
    found: tuple[int] | None = rows.execute("SELECT seats FROM teams WHERE name = ?", (team,)).fetchone()
    return found
