"""The tokens, links and sessions of the HTTP service. A secret is made in this module and returned once. Only its hash
is stored.
"""

import hashlib
import secrets
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Row, text

from core.ledger.audit import Role

Kind = Literal["token", "link", "session"]

INSERT = text("""
    INSERT INTO rota_credentials (kind, name, hash, role, plugins, queues, sees_arguments, created_by, expires_at)
    VALUES (:kind, :name, :hash, :role, CAST(:plugins AS text[]), CAST(:queues AS text[]), :sees_arguments, :created_by,
            clock_timestamp() + CAST(:lasting AS interval))
    ON CONFLICT DO NOTHING RETURNING id
""")
VALID = text("SELECT * FROM rota_credentials WHERE hash = :hash AND expires_at > clock_timestamp()")
VALID_ID = text("SELECT * FROM rota_credentials WHERE id = :id AND expires_at > clock_timestamp()")
#: A use of a token is recorded at most once a minute.
USED = text("""
    UPDATE rota_credentials SET used_at = date_trunc('minute', clock_timestamp())
    WHERE id = :id AND used_at IS DISTINCT FROM date_trunc('minute', clock_timestamp())
""")
TAKE_LINK = text("""
    DELETE FROM rota_credentials WHERE hash = :hash AND kind = 'link' AND expires_at > clock_timestamp() RETURNING *
""")
LISTED = text(
    "SELECT *, expires_at <= clock_timestamp() AS is_expired FROM rota_credentials WHERE kind = 'token' ORDER BY id"
)
#: A session has the name of the token with which it began, so it is deleted with the token.
REVOKE = text("DELETE FROM rota_credentials WHERE name = :name AND kind IN ('token', 'session') RETURNING kind")
END_SESSION = text("DELETE FROM rota_credentials WHERE hash = :hash AND kind = 'session'")
SESSIONS = text("""
    SELECT * FROM rota_credentials WHERE kind = 'session' AND expires_at > clock_timestamp() AND id < :before
    ORDER BY id DESC LIMIT :limit
""")
END_SESSION_OF = text("DELETE FROM rota_credentials WHERE id = :id AND kind = 'session' RETURNING name")
#: Larger than every id.
LAST_ID = 2**63 - 1
IS_ANY_VALID = text("""
    SELECT EXISTS (SELECT 1 FROM rota_credentials WHERE kind = 'token' AND expires_at > clock_timestamp())
""")


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of the holder of a token."""

    role: Role
    plugins: Collection[str] | None = None
    queues: Collection[str] | None = None
    sees_arguments: bool = True


def new_secret(kind: Kind) -> str:
    """Return a secret with 256 random bits. Its prefix and checksum let scanners for leaked secrets find it."""
    random = f"rota_{kind}_{secrets.token_hex(32)}"
    return f"{random}_{zlib.crc32(random.encode()):08x}"


def is_whole(secret: str) -> bool:
    """Return whether the checksum of a secret is right.

    Most forged or mistyped secrets are refused by this check, without a query.
    """
    random, _, checksum = secret.rpartition("_")
    return checksum == f"{zlib.crc32(random.encode(errors='replace')):08x}"


def hashed(secret: str) -> str:
    """Return the hash of a secret, as the ledger stores it."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def insert(connection: Connection, kind: Kind, name: str, rights: Rights, *, lasting: timedelta, by: str) -> str | None:
    """Make a secret, which is valid when the caller's transaction commits, and return it.

    Return None if there is a token with this name.
    """
    secret = new_secret(kind)
    row = {
        "kind": kind,
        "name": name,
        "hash": hashed(secret),
        "role": rights.role,
        "plugins": None if rights.plugins is None else sorted(rights.plugins),
        "queues": None if rights.queues is None else sorted(rights.queues),
        "sees_arguments": rights.sees_arguments,
        "created_by": by,
        "lasting": lasting,
    }
    return secret if connection.execute(INSERT, row).first() is not None else None


def valid(connection: Connection, secret: str) -> Row[Any] | None:
    """Return the row of a secret that is valid now."""
    if not is_whole(secret):
        return None
    return connection.execute(VALID, {"hash": hashed(secret)}).one_or_none()


def by_id(connection: Connection, credential_id: int) -> Row[Any] | None:
    """Return the row of a token or a session that is valid now."""
    return connection.execute(VALID_ID, {"id": credential_id}).one_or_none()


def used(connection: Connection, token_id: int) -> None:
    """Record that a token was used now."""
    connection.execute(USED, {"id": token_id})


def take_link(connection: Connection, secret: str) -> Row[Any] | None:
    """Delete a link that is valid now, and return its row. If two callers use one link at once, only one gets the
    row.
    """
    return connection.execute(TAKE_LINK, {"hash": hashed(secret)}).one_or_none() if is_whole(secret) else None


def listed(connection: Connection) -> list[Row[Any]]:
    """Return all tokens, the oldest first. Links and sessions are not listed."""
    return list(connection.execute(LISTED).all())


def revoke(connection: Connection, name: str) -> bool:
    """Delete the token ``name``, and the sessions with this name. Return whether there were any."""
    return bool(connection.execute(REVOKE, {"name": name}).scalars().all())


def end_session(connection: Connection, secret: str) -> None:
    """Delete the session whose secret is ``secret``."""
    connection.execute(END_SESSION, {"hash": hashed(secret)})


def sessions(connection: Connection, *, limit: int, before: int | None = None) -> list[Row[Any]]:
    """Return the sessions that are valid now, the newest first; with ``before``, only those with smaller ids."""
    return list(connection.execute(SESSIONS, {"limit": limit, "before": before or LAST_ID}).all())


def end_session_of(connection: Connection, session_id: int) -> str | None:
    """Delete the session with that id. Return its name, or None if there is no such session."""
    name: str | None = connection.execute(END_SESSION_OF, {"id": session_id}).scalar()
    return name


def is_any_valid(connection: Connection) -> bool:
    """Return whether any valid token exists, so that the HTTP service can be used."""
    return bool(connection.execute(IS_ANY_VALID).scalar_one())
