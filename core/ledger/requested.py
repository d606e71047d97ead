"""Remembers runs that were requested with an idempotency key, so that a request that is sent twice counts once.

The key is inserted before the run, in the same transaction. A second request with the key waits for the end of that
transaction. Then it finds the run, or inserts the key itself if the first transaction was rolled back.
"""

import hashlib
import json
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from core.errors import BadArguments

TAKE = text("""
    INSERT INTO rota_requested (caller, key, fingerprint) VALUES (:caller, :key, :fingerprint)
    ON CONFLICT DO NOTHING RETURNING key
""")
FOUND = text("SELECT fingerprint, run_id FROM rota_requested WHERE caller = :caller AND key = :key")
REMEMBER = text("UPDATE rota_requested SET run_id = :run_id WHERE caller = :caller AND key = :key")


def before(session: Session, caller: str, key: str, request: Any) -> int | None:
    """Return the run of an earlier request with the same key. If there is none, take the key and return None.

    Raises BadArguments if the key belongs to another request.
    """
    fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    asked = {"caller": caller, "key": key, "fingerprint": fingerprint}
    if session.execute(TAKE, asked).first() is not None:
        return None
    found = session.execute(FOUND, {"caller": caller, "key": key}).one()
    if found.fingerprint != fingerprint:
        raise BadArguments("the idempotency key belongs to another request of this caller; use another key")
    return int(found.run_id)


def remember(session: Session, caller: str, key: str, run_id: int) -> None:
    """Record the run of the key that this transaction has taken."""
    session.execute(REMEMBER, {"caller": caller, "key": key, "run_id": run_id})
