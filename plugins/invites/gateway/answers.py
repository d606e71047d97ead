"""Interprets the gateway's answers. Its own words are not repeated, since they may name a person.

A status tells what was done only where the gateway itself has decided. A person is refused only by an answer that is
about the person: another 4xx may come from a proxy, or be about all of our requests, and a 5xx may come from a proxy
after the gateway has done its work.
"""

from collections.abc import Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime

from plugins.invites.addresses import normalize
from plugins.invites.errors import BadAddress
from plugins.invites.gateway.connection import Answer
from plugins.invites.gateway.errors import IncompleteListing, ReadFailed
from plugins.invites.gateway.gateway import Member
from plugins.invites.gateway.listing import Page
from plugins.invites.gateway.outcomes import Done, Limited, NoSeats, NotSent, Outcome, Refused, Unknown

#: The codes with which the gateway refuses a person, with the status 400 or 422.
ABOUT_PERSON = {"bad_email", "refused"}
ALREADY_MEMBER, NO_SEATS, NO_MEMBER = "already_member", "no_seats", "no_member"
STATES = {"invited": False, "member": True}
LONGEST_CODE = 50
#: The wait after a 429 without a usable Retry-After, and the bounds of any wait.
USUAL_WAIT, SHORTEST_WAIT, LONGEST_WAIT = timedelta(minutes=1), timedelta(seconds=1), timedelta(days=1)
#: These answers are about our settings and not about a person.
OURS = {
    401: "refuses the token; check ROTA_INVITES_GATEWAY_TOKEN",
    403: "does not allow this with our token; check ROTA_INVITES_GATEWAY_TOKEN",
    404: "does not know the team or the address; check the team's name at the gateway, and ROTA_INVITES_GATEWAY",
    405: "does not know this request; check ROTA_INVITES_GATEWAY",
    407: "is behind a proxy that wants a log-in; check HTTPS_PROXY",
}
#: The request with this id may still be at work, so nothing is decided yet.
UNDECIDED = {408, 409, 425}


def failed(name: str, answer: Answer) -> Outcome:
    """Return the outcome of an answer that confirms nothing."""
    told = f"{name} has answered {answer.status}{_with_code(answer)}"
    wait = _wait(answer)
    if wait is not None:
        return Limited(wait, told, answer.status, is_certain=answer.status == 429)
    if 300 <= answer.status < 400:
        return NotSent(f"{told}, a redirect; give its final address as ROTA_INVITES_GATEWAY", answer.status)
    if answer.status == 409 and code_of(answer) == NO_SEATS:
        return NoSeats(answer.status, told)
    if _is_about_person(answer):
        return Refused(answer.status, told)
    if answer.status in OURS:
        return NotSent(f"{told}: it {OURS[answer.status]}", answer.status)
    if 400 <= answer.status < 500 and answer.status not in UNDECIDED:
        return NotSent(
            f"{told}, which is about no person; look at the gateway, and at a proxy before it", answer.status
        )
    return Unknown(told, answer.status)


def _is_about_person(answer: Answer) -> bool:
    code = code_of(answer)
    if answer.status == 404:
        return code == NO_MEMBER
    return answer.status == 410 or (answer.status in {400, 422} and code in ABOUT_PERSON)


def unread(name: str, answer: Answer) -> ReadFailed:
    """Return the error for an answer without what was to be read."""
    hint = f": it {OURS[answer.status]}" if answer.status in OURS else ""
    return ReadFailed(f"{name} has answered {answer.status}{_with_code(answer)}{hint}", _wait(answer))


def invited(name: str, answer: Answer, email: str) -> Done | Unknown:
    """Return Done if the answer is about the person that was to be invited."""
    found = member(answer.body)
    if found is None or found.email != email:
        return Unknown(f"{name} has answered {answer.status} about another person, or unreadably", answer.status)
    return Done(answer.status)


def member(body: object) -> Member | None:
    """Return the person of an answer, or None if it cannot be read."""
    if not isinstance(body, Mapping):
        return None
    email, state = body.get("email"), body.get("state")
    if not isinstance(email, str) or not isinstance(state, str) or state not in STATES:
        return None
    return Member(spelled(email), STATES[state])


def spelled(email: str) -> str:
    """Return an address in this plugin's spelling. An address that the plugin would refuse is only put into lower
    case.
    """
    try:
        return normalize(email)
    except BadAddress:
        return email.strip().lower()


def page(name: str, answer: Answer) -> Page:
    """Return one page of a listing. Raises IncompleteListing if any part of it cannot be read."""
    listed, total, following = (answer.body.get(each) for each in ("members", "total", "next"))
    is_cursor = (following is None or isinstance(following, str)) and "next" in answer.body
    found = [member(each) for each in listed] if isinstance(listed, list) else [None]
    if None in found or not isinstance(listed, list) or not isinstance(total, int) or not is_cursor:
        raise IncompleteListing(f"{name} has sent a page of members that cannot be read")
    return Page({raw["email"]: each for raw, each in zip(listed, found, strict=True) if each}, total, following)


def code_of(answer: Answer) -> str:
    """Return the code of an error, or an empty text if there is none, or one that may be something else."""
    code = answer.body.get("error")
    is_code = isinstance(code, str) and len(code) <= LONGEST_CODE and code.replace("_", "").isalnum() and code.isascii()
    return str(code) if is_code else ""


def _with_code(answer: Answer) -> str:
    code = code_of(answer)
    return f" ({code})" if code else ""


def _wait(answer: Answer) -> timedelta | None:
    """Return how long the gateway wants no request, or None if it has not asked for a wait."""
    given = answer.headers.get("Retry-After")
    if answer.status == 429 or (answer.status == 503 and given is not None):
        span = _span(str(given), answer.headers.get("Date"))
        return USUAL_WAIT if span is None else min(max(span, SHORTEST_WAIT), LONGEST_WAIT)
    return None


def _span(given: str, date: str | None) -> timedelta | None:
    """Return Retry-After as a span: seconds, or a time, which counts from the gateway's own Date (RFC 9110, 10.2.3)."""
    try:
        if given.strip().isdecimal():
            return timedelta(seconds=int(given))
        return parsedate_to_datetime(given) - parsedate_to_datetime(str(date))
    except (ValueError, TypeError, OverflowError):
        return None
