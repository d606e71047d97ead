"""Serves the routes that plugins bring, below ``/api/v1/plugins/NAME``.

A plugin's function is an ordinary function. Its first parameter is a session; the others are parameters of the request,
as in FastAPI. Its result must fit its return annotation. Rota checks this before it commits the transaction.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from core.errors import PluginError
from core.jobs.routes import Route
from core.ledger.audit import Actor
from core.observability.events import WebRoutesBroken, emit
from core.operations import plugin_routes
from core.web.callers import Caller
from core.web.pages import plugin_pages
from core.web.pages.page import PageRoute
from core.web.plugin_calls import Calls
from core.web.problems import REFUSALS

PREFIX = "/api/v1/plugins"
#: The names of our own parameters of an endpoint, which no function of a plugin can have.
CALLER, REQUEST = "rota_caller", "rota_request"
NO_BODY = 204

Function = Callable[..., Any]


def include(app: FastAPI, routes: Mapping[str, tuple[Route, ...]], *, is_strict: bool) -> None:
    """Add the routes of each plugin to ``app``. If a route cannot be used, none of its plugin's routes is added.

    Raises PluginError in that case if ``is_strict``.
    """
    app.state.plugin_pages = []
    for plugin, found in routes.items():
        try:
            router = router_of(plugin, found)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            said = f"{type(error).__name__}: {error}"
            if is_strict:
                raise PluginError(f"the routes of plugin {plugin} cannot be served: {said}") from error
            emit(WebRoutesBroken(plugin, said), error)
        else:
            app.include_router(router)
            app.include_router(pages_of(plugin, found))
            app.state.plugin_pages += [(plugin, route) for route in found if route.title]


def router_of(plugin: str, routes: tuple[Route, ...]) -> APIRouter:
    """Return the routes of a plugin. Raises any error of the imports, and PluginError for a function that is wrong."""
    router = APIRouter(prefix=f"{PREFIX}/{plugin}", tags=[f"Plugin {plugin}"], responses=REFUSALS)
    for route in routes:
        add(router, plugin, route, imported(route))
    get_openapi(title=plugin, version="", routes=router.routes)  # raises an error if a type has no schema
    return router


def pages_of(plugin: str, routes: tuple[Route, ...]) -> APIRouter:
    """Return the pages of a plugin's routes that have titles. They show what the routes return."""
    router = APIRouter(prefix=plugin_pages.place(plugin), include_in_schema=False, route_class=PageRoute)
    for route in routes:
        if route.title:
            function = imported(route)
            answer = TypeAdapter(inspect.signature(function, eval_str=True).return_annotation)
            shown = partial(plugin_pages.shown, plugin, route, routes)
            page = endpoint(plugin, route, function, parameters_of(route, function), answer, shown)
            router.add_api_route(route.path, page, methods=[route.method], response_model=None)
    return router


def imported(route: Route) -> Function:
    """Return the function of a route. Raises any error of its import, or PluginError."""
    module, _, name = route.place.partition(":")
    function = getattr(importlib.import_module(module), name)
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        raise PluginError(f"{route.place} of the route {route} is not a plain function")
    return function


def add(router: APIRouter, plugin: str, route: Route, function: Function) -> None:
    """Add a route to ``router``."""
    parameters = parameters_of(route, function)
    answer = inspect.signature(function, eval_str=True).return_annotation
    if answer is inspect.Signature.empty:
        raise PluginError(f"{route.place} of the route {route} has no return annotation; add one, such as `-> None`")
    has_body = answer is not None and answer is not type(None)
    router.add_api_route(
        route.path,
        endpoint(plugin, route, function, parameters, TypeAdapter(answer) if has_body else None),
        methods=[route.method],
        response_model=answer if has_body else None,
        status_code=200 if has_body else NO_BODY,
        description=inspect.getdoc(function) or "",
        operation_id=f"{plugin}_{function.__name__}_{route.method.lower()}",
        name=function.__name__,
    )


def parameters_of(route: Route, function: Function) -> list[inspect.Parameter]:
    """Return the parameters of ``function`` that a request has: all but the session. Raises PluginError."""
    signature = inspect.signature(function, eval_str=True)
    session, *others = signature.parameters.values() or (None,)
    if session is None or session.annotation is not Session:
        raise PluginError(f"the first parameter of {route.place} is not annotated as a sqlalchemy.orm.Session")
    for each in others:
        if each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY}:
            raise PluginError(f"{route.place} has the parameter {each}, which no request can have")
        if each.annotation is each.empty:
            raise PluginError(f"the parameter {each.name} of {route.place} lacks its annotation")
    return [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in others]


def endpoint(
    plugin: str,
    route: Route,
    function: Function,
    parameters: list[inspect.Parameter],
    adapter: "TypeAdapter[Any] | None",
    shown: "Callable[[Request, Actor, bytes], Response] | None" = None,
) -> Function:
    """Return the function that FastAPI calls. It has the parameters of ``function`` without the session, and two of
    Rota's own. ``shown`` makes the answer from the JSON of the result.
    """

    def permitted(caller: Caller) -> Actor:
        plugin_routes.check(caller, plugin, route)
        return caller

    async def answer(**given: Any) -> Response:
        caller, request = given.pop(CALLER), given.pop(REQUEST)
        calls: Calls = request.app.state.calls[plugin]
        work = partial(call, partial(function, **given), adapter, partial(recorded, caller, plugin, route))
        body = await calls.answer(work, is_reading=route.is_reading)
        if shown is not None:
            return await run_in_threadpool(shown, request, caller, body)
        return Response(body, media_type="application/json") if adapter else Response(status_code=NO_BODY)

    own = [
        inspect.Parameter(CALLER, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Actor, Depends(permitted)]),
        inspect.Parameter(REQUEST, inspect.Parameter.KEYWORD_ONLY, annotation=Request),
    ]
    answer.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]  # Python reads it
    return answer


def recorded(caller: Actor, plugin: str, route: Route, session: Session) -> None:
    """Record the call in the audit, with what the function changed."""
    plugin_routes.record(session, caller, plugin, route)


def call(
    function: Function, adapter: "TypeAdapter[Any] | None", record: Callable[[Session], None], session: Session
) -> bytes:
    """Call the function of a route. Return its result as JSON. Raises pydantic's ValidationError if the result does not
    fit.
    """
    found = function(session)
    session.flush()
    record(session)
    return adapter.dump_json(adapter.validate_python(found, from_attributes=True)) if adapter else b""
