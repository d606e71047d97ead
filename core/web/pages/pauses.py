"""Pauses: the active ones, and the forms that begin and end them."""

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import Connection
from starlette.responses import Response

from core.errors import Forbidden
from core.jobs.registry import EVERYTHING, Registry
from core.ledger.audit import Actor
from core.operations import access, pauses
from core.web.api import pauses as api
from core.web.api.ledger import Changing, Jobs, Reading
from core.web.api.parameters import Seen
from core.web.api.pauses import NewPause
from core.web.pages import forms
from core.web.pages import page as pages
from core.web.pages.forms import Form
from core.web.pages.page import Shown

router = pages.router()


@router.get("/pauses")
def listed(page: Shown, connection: Reading, registry: Jobs, seen: Seen, scope: str = "") -> Response:
    """Show the active pauses."""
    found = api.listed(connection, registry, seen)
    own = list(scopes(connection, registry, page.caller)) if page.may("pause") else []
    return page.shown("pauses.html", pauses=found, scopes=own, scope=scope)


def scopes(connection: Connection, registry: Registry, caller: Actor) -> Iterator[str]:
    """Yield the scopes that a person may pause, the widest first."""
    known = set().union(*registry.scopes.values())
    order = {EVERYTHING: 0, "plugin": 1, "queue": 2, "job": 3}
    for scope in sorted(known, key=lambda each: (order[each.partition(":")[0]], each)):
        try:
            access.check_scope(connection, caller, scope)
        except Forbidden:
            continue
        yield scope


@router.post("/pauses")
def begin(page: Shown, connection: Changing, registry: Jobs, form: Form) -> Response:
    """Begin a pause, and return to the page from which the form was sent."""
    given = {name: forms.first(form, name) for name in ("scope", "minutes", "reason")}
    wanted = forms.checked(NewPause, given)
    lasting = timedelta(minutes=wanted.minutes) if wanted.minutes is not None else None
    begun = pauses.begin(connection, registry, wanted.scope, page.caller, reason=wanted.reason, lasting=lasting)
    fast = f" It does not cover {', '.join(begun.on_fast_lane)}, on the fast lane." if begun.on_fast_lane else ""
    return page.back(forms.place(form), f"{wanted.scope} is paused.{fast}")


@router.post("/pauses/end")
def end(page: Shown, connection: Changing, registry: Jobs, form: Form) -> Response:
    """End a pause, and return to the page from which the form was sent."""
    scope = forms.checked(NewPause, {"scope": forms.first(form, "scope")}).scope
    still = pauses.end(connection, registry, scope, page.caller)
    held = f" It is still paused by the pause of {still[0].scope}." if still else ""
    return page.back(forms.place(form), f"The pause of {scope} has ended.{held}")
