"""Webhooks of the gateway. A webhook is only a hint: Rota asks the gateway for the person, and believes the answer.

So a webhook that is late, comes twice, or comes before an earlier one does no harm. A lost webhook does no harm either,
since ``reconcile-invites`` compares all teams. The signature is that of the Standard Webhooks specification:
``webhook-signature`` has ``v1,`` and the Base64 of the HMAC-SHA256 of ``{webhook-id}.{webhook-timestamp}.{body}``.
Several signatures are separated by spaces, so that the secret can be replaced.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import enqueue
from plugins.invites.addresses import normalize
from plugins.invites.errors import BadAddress, InvitesError
from plugins.invites.models import Seat, SeatState, Team
from plugins.invites.orphans import DETECT
from plugins.invites.processing import RECONCILE
from plugins.invites.settings import InvitesSettings

#: A webhook is not longer than this, in bytes.
LONGEST = 64 * 1024
PREFIX = "whsec_"
HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


class BadWebhook(InvitesError):
    """A webhook cannot be read, or does not come from the gateway. Nothing was changed."""


def record_webhook(session: Session, body: bytes, headers: Mapping[str, str]) -> str:
    """Request that the person of a webhook is looked at, when ``session`` commits. Return what was requested.

    ``body`` is the body as it was received, ``{"team", "email"}`` and anything else. ``headers`` may be in any case.

    Raises BadWebhook; answer 400 then. Its message has neither the body nor the secret.
    """
    check_signature(body, {name.lower(): value for name, value in headers.items()})
    team_ref, email = read(body)
    team_id = session.scalar(select(Team.id).where(Team.gateway_ref == team_ref))
    if team_id is None:
        return "unknown team"
    taken = (Seat.team_id == team_id) & (Seat.email == email) & (Seat.state != SeatState.FREED)
    seat_id = session.scalar(select(Seat.id).where(taken))
    if seat_id is None:
        enqueue(session, DETECT, key=str(team_id), args={"team_id": team_id}, unless="waiting")
        return "team"
    args = {"team_id": team_id, "seat_id": seat_id}
    enqueue(session, RECONCILE, key=f"{team_id}/{seat_id}", args=args, unless="waiting")
    return "seat"


def check_signature(body: bytes, headers: Mapping[str, str]) -> None:
    """Raise BadWebhook unless one of the signatures is right. ``headers`` have names in lower case."""
    if len(body) > LONGEST:
        raise BadWebhook(f"the webhook has more than {LONGEST} bytes")
    missing = [name for name in HEADERS if not headers.get(name)]
    if missing:
        raise BadWebhook(f"the webhook has no header {missing[0]}")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode(errors="replace") + body
    right = base64.b64encode(hmac.digest(secret(), signed, hashlib.sha256))
    given = [part.removeprefix("v1,").encode(errors="replace") for part in headers["webhook-signature"].split()]
    if not any(hmac.compare_digest(each, right) for each in given):
        raise BadWebhook(
            "the webhook is not signed with ROTA_INVITES_WEBHOOK_SECRET; the gateway needs the same secret"
        )


def secret() -> bytes:
    """Return the secret of the settings. Raises BadWebhook if there is none, or if it is no Base64."""
    found = InvitesSettings.current().webhook_secret
    if found is None:
        raise BadWebhook("ROTA_INVITES_WEBHOOK_SECRET is not set, so no webhook can be checked")
    try:
        decoded = base64.b64decode(found.get_secret_value().removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise BadWebhook("ROTA_INVITES_WEBHOOK_SECRET is not whsec_ and Base64") from None
    if not decoded:
        raise BadWebhook("ROTA_INVITES_WEBHOOK_SECRET is empty")
    return decoded


def read(body: bytes) -> tuple[str, str]:
    """Return the team's name at the gateway and the person's address. Raises BadWebhook."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise BadWebhook("the webhook is not JSON") from None
    team, email = (found.get(name) if isinstance(found, dict) else None for name in ("team", "email"))
    if not isinstance(team, str) or not isinstance(email, str) or not team.isprintable():
        raise BadWebhook("the webhook names no team or no email")
    try:
        return team, normalize(email)
    except BadAddress as error:
        raise BadWebhook(f"the webhook cannot be used: {error}") from None
