"""Tokens and sessions of browsers, for admins: the lists, and the forms that make and end them."""

from datetime import timedelta
from typing import Annotated

from fastapi import Path
from starlette.responses import Response

from core.operations import sessions, tokens
from core.operations.tokens import Created, Wanted
from core.web.api.ledger import Changing, Jobs, Reading
from core.web.api.parameters import Body, Name
from core.web.api.tokens import NewToken
from core.web.pages import forms
from core.web.pages import page as pages
from core.web.pages.forms import Form
from core.web.pages.page import Shown

router = pages.router()

#: The headings of the form, whose fields may have several values.
SEVERAL = ("plugins", "queues")


class OfToken(Body):
    """The token to revoke."""

    name: Name


@router.get("/tokens")
def listed(page: Shown, connection: Reading, registry: Jobs) -> Response:
    """Show all tokens, without their secrets."""
    return shown(page, connection, registry)


def shown(page: Shown, connection: Reading, registry: Jobs, created: Created | None = None) -> Response:
    """Return the page of the tokens. The secret of a new token is shown only now."""
    return page.shown(
        "tokens.html",
        201 if created else 200,
        tokens=tokens.listed(connection, page.caller),
        sessions=sessions.listed(connection, page.caller),
        created=created,
        plugins=sorted(plugin.name for plugin in registry.plugins),
        queues=sorted({job.queue for job in registry}),
    )


@router.post("/tokens")
def create(page: Shown, connection: Changing, registry: Jobs, form: Form) -> Response:
    """Make a token. Its secret is in this answer, and cannot be shown again."""
    given = {name: forms.first(form, name) for name in ("name", "role", "days")}
    wanted = forms.checked(NewToken, {**given, **{name: form.get(name) for name in SEVERAL}})
    made = Wanted(wanted.name, wanted.role, wanted.plugins, wanted.queues, timedelta(days=wanted.days))
    return shown(page, connection, registry, tokens.create(connection, made, page.caller))


@router.post("/tokens/revoke")
def revoke(page: Shown, connection: Changing, form: Form) -> Response:
    """Revoke a token, and end the sessions that began with it."""
    name = forms.checked(OfToken, {"name": forms.first(form, "name")}).name
    tokens.revoke(connection, name, page.caller)
    return page.back(page.place("/tokens"), f"The token {name} is revoked.")


@router.post("/tokens/sessions/{session_id}/end")
def end(session_id: Annotated[int, Path(ge=1, lt=2**63)], page: Shown, connection: Changing) -> Response:
    """End the session of a browser, which must then log in again."""
    sessions.end(connection, session_id, page.caller)
    return page.back(page.place("/tokens"), "The session has ended.")
