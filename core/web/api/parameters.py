"""Parameters that several routes have. All are bounded, and a text that PostgreSQL cannot store is refused."""

from inspect import signature
from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from core.ledger.models import State
from core.operations import access
from core.operations.access import View
from core.operations.selection import Selection
from core.web.api.ledger import Reading
from core.web.callers import Caller

MOST = 200


def storable(text: str) -> str:
    """Return ``text``. Raises ValueError for half a surrogate pair, which is not a character."""
    text.encode()
    return text


#: PostgreSQL cannot hold a NUL.
NO_NUL = r"^[^\x00]*$"
Storable = AfterValidator(storable)
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL), Storable]
Key = Annotated[str, Field(max_length=500, pattern=NO_NUL), Storable]
Words = Annotated[str, Field(max_length=1000, pattern=NO_NUL), Storable]
Time = Annotated[str, Field(min_length=1, max_length=40, pattern=NO_NUL), Storable]
Argument = Annotated[str, Field(min_length=3, max_length=500, pattern=NO_NUL), Storable]
AN_ARGUMENT = "customer:42 or address.city:Leeds; all of them must fit."
RunId = Annotated[int, Path(ge=1, lt=2**63)]
Limit = Annotated[int, Query(ge=1, le=MOST)]
StateName = Literal["queued", "running", "retrying", "succeeded", "dead", "skipped", "missed", "orphaned"]
assert set(StateName.__args__) == set(State)  # type: ignore[attr-defined]


class Body(BaseModel):
    """The base of request bodies. An unknown field is refused, since it is probably misspelt."""

    model_config = ConfigDict(extra="forbid")


def chosen(
    job: Annotated[Name | None, Query()] = None,
    key: Annotated[Key | None, Query()] = None,
    plugin: Annotated[Name | None, Query()] = None,
    queue: Annotated[Name | None, Query()] = None,
    state: Annotated[StateName | None, Query()] = None,
    reason: Annotated[Name | None, Query()] = None,
    error: Annotated[Words | None, Query(description="A part of the error; case does not matter.")] = None,
    since: Annotated[Time | None, Query(description="2h (ago), 03:00 or 2026-11-23T03:00+00:00.")] = None,
    until: Annotated[Time | None, Query()] = None,
    arg: Annotated[list[Argument], Query(max_length=5, description=AN_ARGUMENT)] = [],  # noqa: B006 — never changed
) -> Selection:
    """Return the conditions of a list of runs."""
    return Selection((), job, plugin, queue, since, until, error, reason, None, state, key, tuple(arg))


def view(connection: Reading, caller: Caller) -> View:
    """Return the jobs and arguments that the caller may see."""
    return access.view(connection, caller)


#: The names of these conditions in an address.
CONDITIONS = tuple(signature(chosen).parameters)
Chosen = Annotated[Selection, Depends(chosen)]
Seen = Annotated[View, Depends(view)]
Arguments = Annotated[dict[str, Any], Field(max_length=200)]
