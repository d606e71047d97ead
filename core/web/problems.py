"""Answers every error with a problem in the form of RFC 9457, or with a page for a browser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from psycopg2.errors import QueryCanceled, UndefinedColumn, UndefinedTable
from pydantic import Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from core import database
from core.errors import (
    BadArguments,
    BadTime,
    ConfirmationRequired,
    Forbidden,
    IncompleteError,
    LedgerError,
    LeftoversError,
    NotAuthenticated,
    NotFound,
    NotMigrated,
    PauseError,
    PlanError,
    PluginError,
    RotaError,
    ScheduleError,
    SelectionError,
    TokenError,
    UnknownJob,
    UnknownPlan,
    UnknownRun,
)
from core.observability import metrics
from core.observability.events import WebRefused, emit
from core.operations.json_shape import Shape
from core.operations.plans import Plan
from core.web.pages import errors as pages
from core.web.refusals import CrossOrigin, PluginBusy, PluginTooSlow, ProviderAway, TooManyFailures, TooManyWrites

MEDIA_TYPE = "application/problem+json"
#: The longest detail of a problem, in characters.
LONGEST_DETAIL = 2000
RETRY_AFTER_SECONDS = 2


class Flaw(Shape):
    """One fault in a request: its place, as a JSON pointer or the name of a parameter, and a description."""

    pointer: str
    detail: str


class Problem(Shape):
    """The reason why a request was refused, and advice on what to do next."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    #: The last part of the problem's ``type``.
    code: str
    #: Advice on what to do next; empty if the detail has it.
    next: str = ""
    request_id: str
    errors: list[Flaw] = Field(default_factory=list)
    #: The plan that must be confirmed.
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem."""

    status: int
    code: str
    title: str
    next: str = ""


TOO_SLOW = Kind(503, "too-slow", "The query took too long", "narrow the filter, or try again later")
NOT_MIGRATED = Kind(503, "not-migrated", "The database lacks a migration", "run `rota db upgrade`")
DATABASE_AWAY = Kind(503, "database-away", "PostgreSQL cannot be used", "see GET /health, and try again")
BUSY = Kind(503, "busy", "Too many requests are in progress", "try again in some seconds")
VALUE_REFUSED = Kind(409, "value-refused", "PostgreSQL cannot hold a value of the request", "correct the value")
INVALID = Kind(422, "invalid-request", "The request is not valid", "correct what `errors` names")
TOO_LARGE = Kind(413, "too-large", "The body is too large", "send less; large data belongs in a table")
TOO_LATE = Kind(408, "body-too-slow", "The body did not arrive in time", "send it again")
FAILED = Kind(500, "failed", "An unexpected error", "look for `request_id` in the log of `rota web`")
PROVIDER_AWAY = Kind(
    503, "provider-away", "The OIDC provider cannot be used", "try again later, or log in at /login with a token"
)
PLUGIN_BUSY = Kind(503, "plugin-busy", "The plugin is busy", "try again later")
PLUGIN_TOO_SLOW = Kind(503, "plugin-too-slow", "The plugin did not answer in time; nothing was changed", "see its log")
#: The kind for each class of errors. The nearest base class of an error decides.
KINDS: dict[type[Exception], Kind] = {
    UnknownJob: Kind(404, "unknown-job", "No such job", "GET /api/v1/jobs lists them"),
    UnknownRun: Kind(404, "unknown-run", "No such run", "GET /api/v1/runs lists them"),
    PluginError: Kind(404, "unknown-plugin", "No such plugin", "GET /api/v1/plugins lists them"),
    BadArguments: Kind(
        409, "bad-arguments", "The arguments do not fit the job", "GET /api/v1/jobs/{name} has their schema"
    ),
    BadTime: Kind(409, "bad-time", "The time is not valid"),
    SelectionError: Kind(409, "selection", "The selected runs cannot be changed in this way"),
    IncompleteError: Kind(409, "incomplete", "Only some of the runs were changed"),
    PauseError: Kind(409, "pause", "The pause cannot be changed in this way", "GET /api/v1/pauses lists them"),
    ScheduleError: Kind(409, "schedule", "The schedule cannot be changed in this way"),
    NotMigrated: NOT_MIGRATED,
    LedgerError: DATABASE_AWAY,
    UnknownPlan: Kind(404, "unknown-plan", "No such plan or operation", "GET /api/v1/operations lists operations"),
    ConfirmationRequired: Kind(
        409, "confirmation-required", "The plan must be confirmed", "look at the plan, and send its digest"
    ),
    PlanError: Kind(409, "plan", "The plan cannot be used in this way", "POST /api/v1/plans makes a new plan"),
    LeftoversError: Kind(409, "leftovers", "Redis cannot be searched for leftovers", "see GET /health"),
    Forbidden: Kind(403, "forbidden", "You may not do this", "use a token with more rights"),
    NotAuthenticated: Kind(
        401,
        "not-authenticated",
        "Nobody is logged in",
        "send `Authorization: Bearer TOKEN`; `rota tokens create` makes one",
    ),
    TokenError: Kind(409, "token", "The token cannot be made or revoked in this way", "GET /api/v1/tokens lists them"),
    TooManyWrites: Kind(429, "too-many", "Too many changes in a short time", "wait as long as Retry-After says"),
    TooManyFailures: Kind(
        429, "too-many-failures", "Too many wrong secrets in a short time", "wait as long as Retry-After says"
    ),
    CrossOrigin: Kind(403, "cross-origin", "The request comes from another site", "use a token, not a cookie"),
    NotFound: Kind(404, "not-found", "There is no such thing"),
    ProviderAway: PROVIDER_AWAY,
    PluginBusy: PLUGIN_BUSY,
    PluginTooSlow: PLUGIN_TOO_SLOW,
    PoolTimeout: BUSY,
    RotaError: Kind(409, "refused", "The request cannot be fulfilled"),
}
#: The refusals that are logged.
LOGGED = {401, 403, 429}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "60"}}
#: The refusals with which every route of the API can answer.
REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The caller is not known."},
    403: {"model": Problem, "description": "The caller may not do this."},
    404: {"model": Problem, "description": "There is no such thing."},
    409: {"model": Problem, "description": "This cannot be done now, or not in this way."},
    413: {"model": Problem, "description": "The body is too large."},
    422: {"model": Problem, "description": "The request is not valid."},
    429: {"model": Problem, "description": "The caller changes too much, or the address sends too many wrong secrets."},
    503: {"model": Problem, "description": "PostgreSQL is away or too slow, or this process is busy."},
}
TITLES = {400: "The request cannot be read", 404: "No such address", 405: "Not allowed here"}
NEXT = {404: "GET /api/v1/openapi.json lists the addresses", 405: "see the header Allow"}


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error with an RFC 9457 problem. ``Envelope`` logs unexpected errors."""
    for known in KINDS:
        app.add_exception_handler(known, refused)
    app.add_exception_handler(DBAPIError, of_database)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, unexpected)


def answer(
    scope: Mapping[str, Any],
    kind: Kind,
    detail: str,
    *,
    errors: Sequence[Flaw] = (),
    plan: Plan | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the answer to a request that is refused: a problem, or a page for a browser."""
    problem = Problem(
        type=f"urn:rota:problem:{kind.code}",
        title=kind.title,
        status=kind.status,
        detail=detail[:LONGEST_DETAIL],
        instance=str(scope["path"]),
        code=kind.code,
        next=kind.next,
        request_id=scope["state"]["request_id"],
        errors=list(errors),
        plan=plan,
    )
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)} if kind.status == 503 else {}
    given = {**retry, **(headers or {})}
    if pages.is_wanted(scope):
        return pages.page(scope, problem, given)
    return Response(problem.model_dump_json(exclude_none=True), kind.status, media_type=MEDIA_TYPE, headers=given)


def refused(request: Request, error: Exception) -> Response:
    """Return the answer to a request that an operation refuses."""
    kind = next(KINDS[base] for base in type(error).__mro__ if base in KINDS)
    if kind.status in LOGGED:
        address = request.client.host if request.client else ""
        metrics.web_refused(kind.code)
        emit(WebRefused(request.method, request.url.path, kind.code, address, request.scope["state"]["request_id"]))
    plan = error.plan if isinstance(error, ConfirmationRequired) else None
    headers = {**HEADERS.get(kind.status, {}), **retry_after(error)}
    return answer(request.scope, kind, str(error), plan=plan, headers=headers)


def retry_after(error: Exception) -> dict[str, str]:
    """Return the header that says when to try again, if the error knows it."""
    return {"Retry-After": str(math.ceil(error.seconds))} if isinstance(error, TooManyFailures) else {}


def of_database(request: Request, error: Exception) -> Response:
    """Return the answer to a request for which PostgreSQL was away, too slow, or refused a value."""
    orig = getattr(error, "orig", None)
    if isinstance(orig, QueryCanceled):
        return answer(request.scope, TOO_SLOW, "PostgreSQL ended the query at its time-out")
    if isinstance(orig, UndefinedTable | UndefinedColumn):
        return answer(request.scope, NOT_MIGRATED, "a table or a column is missing")
    if database.refuses_value(error):
        return answer(request.scope, VALUE_REFUSED, database.brief(error))
    return answer(request.scope, DATABASE_AWAY, database.brief(error))


def invalid(request: Request, error: Exception) -> Response:
    """Return the answer to a request whose parameters or body are not valid. It does not repeat their values."""
    assert isinstance(error, RequestValidationError)
    flaws = [Flaw(pointer=pointer(each["loc"]), detail=str(each["msg"])) for each in error.errors()]
    named = ", ".join(dict.fromkeys(flaw.pointer for flaw in flaws))
    return answer(request.scope, INVALID, f"not valid: {named}", errors=flaws)


def pointer(place: Sequence[Any]) -> str:
    """Return a place in the body as a JSON pointer such as ``/args/customer_id``, or return the name of a parameter."""
    kind, *names = place
    return "/" + "/".join(map(str, names)) if kind == "body" else ".".join(map(str, names or [kind]))


def of_http(request: Request, error: Exception) -> Response:
    """Return the answer to a request for an unknown address, or with a wrong method."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    kind = Kind(status, f"http-{status}", TITLES.get(status, "Refused"), NEXT.get(status, ""))
    return answer(request.scope, kind, str(error.detail), headers=error.headers)


def not_there(request: Request) -> Response:
    """Return the answer to a request for an address that this service does not have."""
    return of_http(request, HTTPException(404))


def unexpected(request: Request, _error: Exception) -> Response:
    """Return the answer after an unexpected error. Starlette raises the error again."""
    return answer(request.scope, FAILED, "the request could not be answered; nothing more is known here")
