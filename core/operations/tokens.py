"""Tokens of the HTTP service: makes, lists and revokes tokens, and identifies callers."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row

from core.errors import NotAuthenticated, TokenError, suggestion
from core.ledger import audit, tokens
from core.ledger.audit import Actor, Role
from core.ledger.tokens import Rights
from core.operations import access
from core.operations.json_shape import Instant, Shape
from core.plugins import loading

#: How long a token is valid by default.
USUAL = timedelta(days=90)
#: The longest time for which a token can be valid.
LONGEST = timedelta(days=3660)
#: How long a link can be used.
LINK_LASTS = timedelta(hours=1)
#: How long a browser stays logged in.
SESSION_LASTS = timedelta(hours=12)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
#: The name of the interface in the audit.
HTTP = "http"


class Token(Shape):
    """A token, without its secret."""

    name: str
    role: str
    plugins: list[str] | None
    queues: list[str] | None
    sees_arguments: bool
    created_at: Instant
    created_by: str
    expires_at: Instant
    is_expired: bool
    #: The time when the token was last used, to the minute.
    used_at: Instant | None


class Created(Shape):
    """A new token. Its secret is shown only in this answer."""

    name: str
    role: str
    token: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """The token to make. With ``sees_arguments`` None, operators and admins see arguments, and viewers do not."""

    name: str
    role: Role = "viewer"
    plugins: Collection[str] | None = None
    queues: Collection[str] | None = None
    lasting: timedelta = USUAL
    sees_arguments: bool | None = None

    @property
    def rights(self) -> Rights:
        """The rights that the token gives."""
        sees = self.role != "viewer" if self.sees_arguments is None else self.sees_arguments
        return Rights(self.role, self.plugins, self.queues, sees)


def create(connection: Connection, wanted: Wanted, actor: Actor) -> Created:
    """Make a token, which is valid when the caller's transaction commits. Raises Forbidden or TokenError."""
    access.check(actor, "tokens create")
    access.check_unlimited(actor, "a token")
    check(wanted)
    secret = tokens.insert(connection, "token", wanted.name, wanted.rights, lasting=wanted.lasting, by=actor.name)
    if secret is None:
        raise TokenError(f"there is a token named {wanted.name!r}; revoke it first, or give another name")
    audit.record(connection, actor, "tokens create", wanted.name, role=wanted.role, limited=is_limited(wanted))
    return Created(name=wanted.name, role=wanted.role, token=secret)


def check(wanted: Wanted) -> None:
    """Raise TokenError unless the token can be made."""
    if not NAME.fullmatch(wanted.name):
        raise TokenError(f"{wanted.name!r} is not a name for a token; use up to 100 letters, digits, . _ @ and -")
    if not timedelta(0) < wanted.lasting <= LONGEST:
        raise TokenError(f"a token can be valid for up to {LONGEST.days} days")
    registry = loading.current()
    known = {"plugin": {plugin.name for plugin in registry.plugins}, "queue": {job.queue for job in registry}}
    for kind, names in (("plugin", wanted.plugins), ("queue", wanted.queues)):
        for name in names or ():
            if name not in known[kind]:
                raise TokenError(f"unknown {kind} {name!r}{suggestion(name, known[kind])}")


def is_limited(wanted: Wanted) -> bool | None:
    """Return True if the token is limited to plugins or queues. Otherwise return None, which the audit leaves out."""
    return True if wanted.plugins is not None or wanted.queues is not None else None


def link(connection: Connection, actor: Actor, *, role: Role = "admin") -> str:
    """Make a secret with which one browser can log in once. Raises Forbidden."""
    access.check(actor, "tokens link")
    access.check_unlimited(actor, "a link to log in")
    secret = tokens.insert(connection, "link", actor.name, Rights(role), lasting=LINK_LASTS, by=actor.name)
    assert secret is not None
    audit.record(connection, actor, "tokens link", actor.name, role=role)
    return secret


def listed(connection: Connection, actor: Actor) -> list[Token]:
    """Return all tokens, the oldest first. Raises Forbidden."""
    access.require(actor, "admin", "the list of tokens")
    access.check_unlimited(actor, "the list of tokens")
    return [Token.model_validate(row) for row in tokens.listed(connection)]


def revoke(connection: Connection, name: str, actor: Actor) -> None:
    """Revoke the token ``name``, and end the sessions with this name, when the caller's transaction commits.

    A person who logs in at an OpenID Connect provider has sessions without a token. Raises Forbidden or TokenError.
    """
    access.check(actor, "tokens revoke")
    access.check_unlimited(actor, "a token")
    if not tokens.revoke(connection, name):
        known = [row.name for row in tokens.listed(connection)]
        raise TokenError(f"there is no token and no session named {name!r}{suggestion(name, known)}")
    audit.record(connection, actor, "tokens revoke", name)


def holder(connection: Connection, secret: str, *, kind: tokens.Kind = "token") -> Actor:
    """Return the holder of a secret of this ``kind``. Raises NotAuthenticated, whose message does not contain the
    secret.
    """
    row = tokens.valid(connection, secret)
    if row is None or row.kind != kind:
        raise NotAuthenticated(f"the {kind} is not valid: it is mistyped, expired or revoked")
    tokens.used(connection, row.id)
    return actor_of(row)


def log_in(connection: Connection, secret: str) -> str:
    """Return the secret of a new session for the holder of a token or of an unused link. Raises NotAuthenticated."""
    row = tokens.take_link(connection, secret) or tokens.valid(connection, secret)
    if row is None or row.kind == "session":
        raise NotAuthenticated("this secret cannot be used to log in: it is mistyped, used, expired or revoked")
    rights = Rights(row.role, row.plugins, row.queues, row.sees_arguments)
    return begin_session(connection, row.name, rights, by=row.created_by)


def begin_session(connection: Connection, name: str, rights: Rights, *, by: str) -> str:
    """Return the secret of a new session for a person who has logged in."""
    session = tokens.insert(connection, "session", name, rights, lasting=SESSION_LASTS, by=by)
    assert session is not None
    return session


def log_out(connection: Connection, secret: str) -> None:
    tokens.end_session(connection, secret)


def actor_of(row: Row[Any]) -> Actor:
    """Return the holder of a token or a session, with the holder's present rights."""
    return Actor(
        row.name,
        HTTP,
        row.role,
        None if row.plugins is None else frozenset(row.plugins),
        None if row.queues is None else frozenset(row.queues),
        row.sees_arguments,
        {row.kind: row.id},
    )


def with_facts(actor: Actor, **facts: Any) -> Actor:
    """Return ``actor`` with more facts for the audit. Facts that are None are left out."""
    return replace(actor, facts={**actor.facts, **{name: value for name, value in facts.items() if value is not None}})
