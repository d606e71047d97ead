"""Webhooks are hints: late, repeated, out of order or forged, they change nothing but that the gateway is asked."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from invites_office import Office
from invites_world import email

from plugins.invites import BadWebhook, record_webhook
from plugins.invites import gateway_jobs as jobs

SECRET = base64.b64encode(b"a secret of the gateway").decode()


def signed(body: Any, *, secret: str = SECRET, at: str = "1767614400", number: str = "msg_1") -> tuple[bytes, dict]:
    """Return the body and the headers of a webhook as the gateway sends it."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    digest = hmac.digest(base64.b64decode(secret), f"{number}.{at}.".encode() + raw, hashlib.sha256)
    headers = {
        "Webhook-Id": number,
        "Webhook-Timestamp": at,
        "Webhook-Signature": f"v1,{base64.b64encode(digest).decode()}",
    }
    return raw, headers


@pytest.fixture
def club(office: Office, configure) -> Office:
    """Return an office in which Ann is invited and whose gateway signs webhooks."""
    configure(webhook_secret=f"whsec_{SECRET}")
    office.team()
    office.redeems("ann")
    office.sends()
    return office


def receive(office: Office, body: Any, **options: Any) -> str:
    done = record_webhook(office.session, *signed(body, **options))
    office.session.commit()
    return done


def follow(office: Office) -> Any:
    return office.runs(jobs.reconcile_invites, seat_id=1)


def test_a_webhook_has_the_gateway_asked_for_the_person(club: Office):
    club.server.control("accept", {"team": "red", "email": email("ann")})

    assert receive(club, {"team": "red", "email": "Ann@EXAMPLE.org", "type": "member.joined"}) == "seat"

    assert club.world.runs("reconcile-invites") == ["1/1"]
    assert follow(club).result == {"joined": 1}
    assert club.world.states() == {"ann": ["member"]}


def test_a_repeated_webhook_is_one_question(club: Office):
    for _ in range(3):
        receive(club, {"team": "red", "email": email("ann")})

    assert club.world.runs("reconcile-invites") == ["1/1"]


def test_a_webhook_out_of_order_does_not_change_what_the_gateway_says(club: Office):
    """The webhook about a removal comes late: the person was invited again since."""
    receive(club, {"team": "red", "email": email("ann"), "type": "member.removed"}, at="1000000000", number="old")

    assert follow(club).result == {}
    assert club.world.states() == {"ann": ["invited"]}


def test_a_webhook_about_a_removal_frees_the_seat(club: Office):
    club.server.control("leave", {"team": "red", "email": email("ann")})

    receive(club, {"team": "red", "email": email("ann"), "type": "member.removed"})

    assert follow(club).result == {"lost": 1}
    assert club.world.states() == {"ann": ["freed"]}


def test_a_webhook_settles_an_unknown_outcome(club: Office):
    club.redeems("ben")
    club.server.fault("reset_after", on="invite")
    club.sends()

    receive(club, {"team": "red", "email": email("ben")})

    assert club.runs(jobs.reconcile_invites, seat_id=2).result == {"settled": 1}
    assert club.world.states()["ben"] == ["invited"]


def test_a_webhook_about_a_stranger_has_the_team_searched(club: Office):
    assert receive(club, {"team": "red", "email": email("zoe")}) == "team"
    assert receive(club, {"team": "none", "email": email("zoe")}) == "unknown team"

    assert club.world.runs("detect-orphan-users") == ["1"]
    assert club.world.runs("reconcile-invites") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"Webhook-Signature": "v1,Zm9yZ2Vk"}, "is not signed with ROTA_INVITES_WEBHOOK_SECRET"),
        ({"Webhook-Signature": "v1,é\ud800"}, "is not signed with"),
        ({"Webhook-Signature": ""}, "has no header webhook-signature"),
        ({"Webhook-Id": "msg_2"}, "is not signed with"),
        ({"Webhook-Timestamp": "1767614401"}, "is not signed with"),
    ],
)
def test_a_forged_webhook_is_refused(club: Office, change, told):
    body, headers = signed({"team": "red", "email": email("ann")})

    with pytest.raises(BadWebhook, match=told) as refused:
        record_webhook(club.session, body, {**headers, **change})

    assert "ann" not in str(refused.value)
    assert club.world.runs("reconcile-invites") == []


def test_a_body_that_was_changed_is_refused(club: Office):
    body, headers = signed({"team": "red", "email": email("ann")})

    with pytest.raises(BadWebhook, match="is not signed with"):
        record_webhook(club.session, body + b" ", headers)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "is not JSON"),
        (b"[" * 50_000, "is not JSON"),
        (b"x" * 70_000, "has more than 65536 bytes"),
        (b"[]", "names no team or no email"),
        ({"team": "red"}, "names no team or no email"),
        ({"team": "\0", "email": email("ann")}, "names no team or no email"),
        ({"team": "\ud800", "email": email("ann")}, "names no team or no email"),
        ({"team": "red", "email": "ann"}, "cannot be used: the address has no @"),
    ],
)
def test_a_webhook_that_cannot_be_read_is_told(club: Office, body, told):
    with pytest.raises(BadWebhook, match=told):
        receive(club, body)


def test_a_former_secret_is_accepted_beside_the_new_one(club: Office):
    body, headers = signed({"team": "red", "email": email("ann")})
    other = base64.b64encode(b"another").decode()
    _, others = signed({"team": "red", "email": email("ann")}, secret=other)
    both = f"{others['Webhook-Signature']} {headers['Webhook-Signature']}"

    assert record_webhook(club.session, body, {**headers, "Webhook-Signature": both}) == "seat"


@pytest.mark.parametrize(
    ("secret", "told"),
    [("whsec_no base64!", "is not whsec_ and Base64"), ("whsec_", "is empty"), (None, "is not set")],
)
def test_a_secret_that_cannot_be_used_is_told(club: Office, configure, monkeypatch, secret, told):
    if secret is None:
        monkeypatch.delenv("ROTA_INVITES_WEBHOOK_SECRET")
        configure()
    else:
        configure(webhook_secret=secret)

    with pytest.raises(BadWebhook, match=told) as refused:
        receive(club, {"team": "red", "email": email("ann")})
    assert "no base64!" not in str(refused.value)
