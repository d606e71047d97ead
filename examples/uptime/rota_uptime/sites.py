"""The rules for sites, as plain functions of a session and a time."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from rota_uptime.models import Site


def watched(session: Session) -> Sequence[Site]:
    """Every site."""
    return session.scalars(select(Site).order_by(Site.id)).all()


def answers(url: str, timeout_seconds: float) -> bool:
    """Whether the site answers in time, and not with an error of its own."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, http.client.HTTPException, ValueError):
        return False


def record(session: Session, site_id: int, is_up: bool, now: datetime) -> bool:
    """Record the result of a probe; return whether it changed. False for a site that was deleted."""
    changed = update(Site).where(Site.id == site_id, Site.is_up.is_distinct_from(is_up))
    return session.execute(changed.values(is_up=is_up, changed_at=now)).rowcount > 0
