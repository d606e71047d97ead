"""Removes leftovers of sessions in Redis: in a job for all users, and at log-in and log-out for one user.

There are three kinds of sessions, each stored as JSON, under ``session:{id}``, ``service_session:{service}:{id}`` and
``admin_session:{admin}:{id}``. For each user, the set ``user_sessions:{user}`` has the ids of the user's sessions of
the first kind. There are two kinds of leftovers: sessions that are marked ``"is_active": false`` before their TTL ends,
and members of a set whose session is gone.

**No valid session is removed**, even while users log in. A script in Redis makes and carries out each decision in one
step. It deletes a session only if the stored session is inactive at that moment, and a member only if its session does
not exist at that moment. An application may add the member first and store the session a moment later, so the script
could remove the member too early. Therefore the job removes a member only if its session is missing twice, a second
apart. Log-in and log-out cannot wait for a second. So an application that calls ``on_login`` or ``on_logout`` must
store the session before it adds the member, or both in one MULTI.

A value that is not a JSON object is not changed, and is counted. Memory does not grow with the number of sessions.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from core import Checkpoint
from plugins.maintenance.application_redis import STEP, Client, as_bytes, client, scan

#: If an application adds the member first, it must store the session within this time.
SETTLING = timedelta(seconds=1)
#: The most members that wait for their second check. If there are more, the search waits for the oldest members.
SUSPECTS = 10_000
KINDS = (b"session:", b"service_session:", b"admin_session:")
#: Matches the keys of all three kinds, and no other keys of the application, so that one pass is enough.
ANY_KIND = b"*session:*"
SETS = b"user_sessions:"

#: Larger values are not sessions, and Redis would serve no other command while it decodes such a value.
LARGEST = 1_000_000
DELETE_INACTIVE = f"""
    local deleted, unreadable = 0, 0
    for _, key in ipairs(KEYS) do
        local kind = redis.call('TYPE', key).ok
        local readable, session = false, nil
        if kind == 'string' and redis.call('STRLEN', key) <= {LARGEST} then
            readable, session = pcall(cjson.decode, redis.call('GET', key))
        end
        if readable and type(session) == 'table' then
            if session.is_active == false then deleted = deleted + redis.call('UNLINK', key) end
        elseif kind ~= 'none' then
            unreadable = unreadable + 1
        end
    end
    return {{deleted, unreadable}}
"""
#: KEYS are the set and, for each member in ARGV, the key of its session.
REMOVE_GONE = """
    local removed = 0
    for number, member in ipairs(ARGV) do
        if redis.call('EXISTS', KEYS[number + 1]) == 0 then
            removed = removed + redis.call('SREM', KEYS[1], member)
        end
    end
    return removed
"""
#: Log-out: deletes a session if the user's set contains it or if it names the user. Returns -1 if it names no user.
LOG_OUT = f"""
    local is_member = redis.call('SREM', KEYS[1], ARGV[1]) == 1
    if is_member or ARGV[3] == 'nobody else' then return redis.call('UNLINK', KEYS[2]) end
    if redis.call('TYPE', KEYS[2]).ok ~= 'string' or redis.call('STRLEN', KEYS[2]) > {LARGEST} then return 0 end
    local readable, session = pcall(cjson.decode, redis.call('GET', KEYS[2]))
    local user = readable and type(session) == 'table' and session.user_id
    if type(user) == 'number' then user = string.format('%.0f', user) end
    if type(user) ~= 'string' then return -1 end
    if user ~= ARGV[2] then return 0 end
    return redis.call('UNLINK', KEYS[2])
"""


def on_login(user_id: str, *, redis: "Client | None" = None) -> dict[str, int]:
    """Remove the leftovers of one user's earlier sessions. Call this function after the new session is stored."""
    return clean_sessions(redis or client(), user_id=user_id, settling=timedelta(0))


def on_logout(user_id: str, session_id: str, *, redis: "Client | None" = None) -> dict[str, int]:
    """End one session of one user, and remove the leftovers of the user's other sessions.

    A session belongs to the user if the user's set contains its id, or if it names the user (``"user_id"``). A session
    that names no user is also ended, unless the set of another user contains its id. Sessions of other users stay.
    """
    connection = redis or client()
    ended = _log_out(connection, user_id, session_id)
    if ended < 0:
        ended = 0 if _is_in_a_set(connection, session_id) else _log_out(connection, user_id, session_id, "nobody else")
    return {"ended": ended, **clean_sessions(connection, user_id=user_id, settling=timedelta(0))}


def _log_out(redis: Client, user_id: str, session_id: str, known: str = "") -> int:
    keys = [SETS + user_id.encode(), KINDS[0] + session_id.encode()]
    return int(redis.eval(LOG_OUT, len(keys), *keys, session_id.encode(), user_id.encode(), known))


def _is_in_a_set(redis: Client, session_id: str) -> bool:
    for sets in scan(redis, SETS + b"*"):
        with redis.pipeline(transaction=False) as pipeline:
            for of_user in sets:
                pipeline.sismember(of_user, session_id)
            if any(answer == 1 for answer in pipeline.execute(raise_on_error=False)):  # the value is not a set
                return True
    return False


def clean_sessions(
    redis: Client,
    *,
    user_id: str | None = None,
    settling: timedelta = SETTLING,
    checkpoint: Checkpoint | None = None,
) -> dict[str, int]:
    """Delete inactive sessions of all three kinds, and members of users' sets whose session is gone.

    With ``user_id``, only that user's set and its sessions are checked. Counts deleted sessions (``inactive``), removed
    members (``gone``), and unreadable values, which are kept (``unreadable``).
    """
    cleaning = Cleaning(redis, settling, checkpoint)
    if user_id is None:
        cleaning.clean_everyone()
    else:
        cleaning.clean_user(SETS + user_id.encode())
    return cleaning.counts


class Suspect(NamedTuple):
    """Members of a set whose sessions were missing at the time ``since``."""

    since: float
    of_user: bytes
    members: Sequence[bytes]


@dataclass
class Cleaning:
    """One pass through the sessions."""

    redis: Client
    settling: timedelta
    checkpoint: Checkpoint | None
    counts: dict[str, int] = field(default_factory=lambda: {"inactive": 0, "gone": 0, "unreadable": 0})
    suspects: deque[Suspect] = field(default_factory=deque)
    waiting: int = 0

    def __post_init__(self) -> None:
        self.delete_inactive = self.redis.register_script(DELETE_INACTIVE)
        self.remove_gone = self.redis.register_script(REMOVE_GONE)

    def clean_everyone(self) -> None:
        """Clean the sessions first, and then the sets, so that the ids of deleted sessions also leave the sets."""
        for keys in scan(self.redis, ANY_KIND):
            self._delete_inactive([key for key in keys if key.startswith(KINDS)])
            self._save()
        for keys in scan(self.redis, SETS + b"*"):
            self._suspect_missing(keys)
            self._confirm(down_to=SUSPECTS)
            self._save()
        self._confirm(down_to=0)
        self._save()

    def clean_user(self, of_user: bytes) -> None:
        """Clean the sessions in one user's set, and then the set."""
        for members in self._pages(of_user, 0):
            self._delete_inactive([KINDS[0] + member for member in members])
        self._suspect_missing([of_user])
        self._confirm(down_to=0)

    def _delete_inactive(self, keys: Sequence[bytes]) -> None:
        if keys:
            deleted, unreadable = self.delete_inactive(keys=keys)
            self.counts["inactive"] += deleted
            self.counts["unreadable"] += unreadable

    def _suspect_missing(self, sets: Sequence[bytes]) -> None:
        """Request the first pages of all these sets at once, since few sets have a second page."""
        pages = self._at_once([("SSCAN", of_user, 0, "COUNT", STEP) for of_user in sets])
        for of_user, page in zip(sets, pages, strict=True):
            if isinstance(page, Exception):  # not a set
                self.counts["unreadable"] += 1
                continue
            cursor, members = page
            self._suspect(of_user, [as_bytes(member) for member in members])
            if int(cursor):
                for more in self._pages(of_user, int(cursor)):
                    self._suspect(of_user, more)
                    self._confirm(down_to=SUSPECTS)

    def _suspect(self, of_user: bytes, members: Sequence[bytes]) -> None:
        if not self.settling:
            self._remove_gone(of_user, members)
            return
        exist = self._at_once([("EXISTS", KINDS[0] + member) for member in members])
        missing = [member for member, exists in zip(members, exist, strict=True) if not exists]
        if missing:
            self.suspects.append(Suspect(time.monotonic(), of_user, missing))
            self.waiting += len(missing)

    def _confirm(self, *, down_to: int) -> None:
        """Check again the members that are due. While there are more members than ``down_to``, wait for the oldest."""
        settling = self.settling.total_seconds()
        while self.suspects:
            left = self.suspects[0].since + settling - time.monotonic()
            if left > 0 and self.waiting <= down_to:
                return
            time.sleep(max(0.0, left))
            suspect = self.suspects.popleft()
            self.waiting -= len(suspect.members)
            self._remove_gone(suspect.of_user, suspect.members)

    def _remove_gone(self, of_user: bytes, members: Sequence[bytes]) -> None:
        if members:
            keys = [of_user, *(KINDS[0] + member for member in members)]
            self.counts["gone"] += self.remove_gone(keys=keys, args=members)

    def _pages(self, of_user: bytes, cursor: int) -> Iterator[list[bytes]]:
        """Yield the members of a set from ``cursor`` on."""
        from redis import ResponseError  # only here, so that `rota jobs` need not import it

        while True:
            try:
                cursor, members = self.redis.sscan(of_user, cursor, count=STEP)
            except ResponseError:
                return
            yield [as_bytes(member) for member in members]
            if not cursor:
                return

    def _at_once(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send the commands in one round trip. Return their replies and errors."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return pipeline.execute(raise_on_error=False)

    def _save(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint(self.counts)
