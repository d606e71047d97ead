"""Routes for the caller's own identity, and for the tokens of all callers."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from core.ledger.audit import Role
from core.operations import tokens
from core.operations.json_shape import Shape
from core.operations.tokens import Created, Token, Wanted
from core.web.api.ledger import Changing, Reading
from core.web.api.parameters import Name
from core.web.callers import Caller

router = APIRouter(tags=["Tokens"])

Names = Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=100)]


class Me(Shape):
    """The caller, and the actions that the caller may do."""

    name: str
    role: str
    plugins: list[str] | None
    queues: list[str] | None
    sees_arguments: bool


class NewToken(BaseModel):
    """The token to make."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]
    role: Role = "viewer"
    plugins: Names | None = None
    queues: Names | None = None
    days: Annotated[int, Field(ge=1, le=3660)] = 90
    sees_arguments: bool | None = None


@router.get("/me")
def me(caller: Caller) -> Me:
    """Return the identity of the caller."""
    limits = [None if names is None else sorted(names) for names in (caller.plugins, caller.queues)]
    return Me(
        name=caller.name, role=caller.role, plugins=limits[0], queues=limits[1], sees_arguments=caller.sees_arguments
    )


@router.get("/tokens")
def listed(connection: Reading, caller: Caller) -> list[Token]:
    """Return all tokens, the oldest first, without their secrets. For admins."""
    return tokens.listed(connection, caller)


@router.post("/tokens", status_code=201)
def create(wanted: NewToken, connection: Changing, caller: Caller) -> Created:
    """Make a token. Its secret is in this answer, and cannot be shown again. For admins."""
    made = Wanted(
        wanted.name, wanted.role, wanted.plugins, wanted.queues, timedelta(days=wanted.days), wanted.sees_arguments
    )
    return tokens.create(connection, made, caller)


@router.delete("/tokens/{name}", status_code=204)
def revoke(name: Annotated[Name, Path()], connection: Changing, caller: Caller) -> None:
    """Revoke a token, and end the sessions that began with it. For admins."""
    tokens.revoke(connection, name, caller)
