"""What each status of the gateway means, and how long a Retry-After is."""

from datetime import timedelta
from typing import Any

import pytest

from plugins.invites.gateway.answers import failed, unread
from plugins.invites.gateway.connection import Answer
from plugins.invites.gateway.outcomes import Limited, NoSeats, NotSent, Refused, Unknown

DATE = "Sat, 28 Nov 2026 16:00:00 GMT"


def outcome(status: int, body: Any = None, **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return failed("the gateway", Answer(status, named, body or {}))


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (301, "", NotSent),
        (307, "", NotSent),
        (400, "bad_request", NotSent),
        (400, "refused", Refused),
        (402, "", NotSent),
        (401, "", NotSent),
        (403, "", NotSent),
        (404, "no_team", NotSent),
        (404, "no_member", Refused),
        (405, "", NotSent),
        (407, "", NotSent),
        (408, "", Unknown),
        (409, "no_seats", NoSeats),
        (409, "in_progress", Unknown),
        (410, "", Refused),
        (413, "", NotSent),
        (418, "", NotSent),
        (422, "bad_email", Refused),
        (422, "", NotSent),
        (422, "id_reused", NotSent),
        (425, "", Unknown),
        (429, "", Limited),
        (451, "", NotSent),
        (500, "", Unknown),
        (502, "", Unknown),
        (503, "", Unknown),
        (504, "", Unknown),
        (202, "", Unknown),
        (599, "", Unknown),
    ],
)
def test_only_a_decision_of_the_gateway_is_a_known_outcome(status, error, kind):
    found = outcome(status, {"error": error})

    assert type(found) is kind
    assert f"answered {status}" in found.why


@pytest.mark.parametrize("error", ["ann@example.org", "a b", 5, None, ["no_seats"], "x" * 51, "é"])
def test_what_is_no_code_is_not_repeated(error):
    told = "the gateway has answered 400, which is about no person; look at the gateway, and at a proxy before it"
    assert outcome(400, {"error": error}).why == told


@pytest.mark.parametrize(
    ("given", "wait"),
    [
        ("90", timedelta(seconds=90)),
        ("0", timedelta(seconds=1)),
        ("Sat, 28 Nov 2026 16:02:00 GMT", timedelta(minutes=2)),
        ("Sat, 28 Nov 2026 15:00:00 GMT", timedelta(seconds=1)),
        ("9" * 40, timedelta(minutes=1)),
        ("999999999", timedelta(days=1)),
        ("-5", timedelta(minutes=1)),
        ("soon", timedelta(minutes=1)),
        ("", timedelta(minutes=1)),
    ],
)
def test_retry_after_counts_from_the_gateways_own_clock(given, wait):
    found = outcome(429, Retry_After=given, Date=DATE)

    assert isinstance(found, Limited)
    assert found.wait == wait


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_a_time_without_the_gateways_own_is_not_used(date):
    found = outcome(429, Retry_After=DATE, Date=date)

    assert isinstance(found, Limited)
    assert found.wait == timedelta(minutes=1)


def test_only_429_is_certain_that_nothing_was_done():
    found = [outcome(status, Retry_After="5") for status in (429, 503)]

    assert [each.is_certain for each in found] == [True, False]


def test_a_read_that_fails_has_the_hint_and_the_wait():
    denied = unread("the gateway", Answer(401, {}, {}))
    limited = unread("the gateway", Answer(503, {"Retry-After": "5"}, {}))

    assert str(denied) == "the gateway has answered 401: it refuses the token; check ROTA_INVITES_GATEWAY_TOKEN"
    assert limited.wait == timedelta(seconds=5)
