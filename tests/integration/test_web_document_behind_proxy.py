"""Requests made up from the OpenAPI document, for routes of plugins too, behind a proxy that removes the prefix.

The caller has logged in at an OpenID Connect provider.
"""

import pprint
import sys
import types
from typing import Annotated
from urllib.parse import urlsplit

import hypothesis
import pytest
import schemathesis
from pydantic import BaseModel, Field, SecretStr
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import ignored_auth
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from core import NotFound, Route, every, job
from core.jobs.registry import Plugin, Registry
from core.plugins import loading
from tests.support import oidc_provider
from tests.support.web import serving

PROXY, PREFIX, HOST = "10.0.0.5", "/ops/rota", "127.0.0.1:9190"
#: The number of requests for each route of Rota, which other tests send many, and for each route of a plugin.
REQUESTS, REQUESTS_OF_PLUGINS = 1, 5


class Shelf(BaseModel):
    """A shelf."""

    name: Annotated[str, Field(max_length=50, pattern=r"^[^\x00]*$")]
    size: Annotated[int, Field(ge=1, le=9)] = 1


def shelves(session: Session, limit: Annotated[int, Field(ge=1, le=200)] = 10) -> list[Shelf]:
    """List the shelves."""
    return [Shelf(name=name) for name in session.scalars(text("SELECT scope FROM rota_pauses")).all()[:limit]]


def build(session: Session, name: Annotated[str, Field(max_length=50)], shelf: Shelf) -> Shelf:
    """Build a shelf."""
    session.execute(text("SELECT CAST(:size AS integer)"), {"size": shelf.size})
    return shelf


def remove(session: Session, name: Annotated[str, Field(max_length=50)]) -> None:
    """Remove a shelf."""
    raise NotFound("there is no such shelf")


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk"):
    """Close the day."""


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("routes_of_a_shop")
    for function in (shelves, build, remove):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    routes = (
        Route("GET", "/shelves", f"{module.__name__}:shelves", "viewer"),
        Route("PUT", "/shelves/{name}", f"{module.__name__}:build", "operator"),
        Route("DELETE", "/shelves/{name}", f"{module.__name__}:remove", "admin"),
    )
    return Plugin("shop", "", "", (close_day,), routes=routes)


@pytest.fixture
def browser(database, plugin):
    """A browser behind the proxy, which has logged in as an admin."""
    with loading.using(Registry((plugin,))), oidc_provider.wrong() as provider:
        settings = {
            "web_proxies": PROXY,
            "web_roles": "admins=admin",
            "web_url": f"http://{HOST}{PREFIX}",
            "oidc_issuer": provider.issuer,
            "oidc_client_id": "rota",
            "oidc_client_secret": SecretStr("the-secret-of-the-client"),
        }
        provider.claims = {"groups": ["admins"]}
        with serving(per_minute=10**9, **settings) as service:
            browser = TestClient(stripping(service.application), base_url=f"http://{HOST}")
            begun = browser.get(f"{PREFIX}/login/oidc", follow_redirects=False)
            back = f"{PREFIX}/login/oidc/back?{provider.code(begun.headers['Location'])}"
            assert browser.get(back, follow_redirects=False).status_code == 303
            yield browser


def stripping(app):
    """Put a proxy before ``app`` that removes the prefix, and answers 502 outside of it."""

    async def proxy(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        path = scope["path"].removeprefix(PREFIX)
        if path == scope["path"]:
            raise AssertionError(f"{path} lacks the prefix")
        raw = scope.get("raw_path", b"").removeprefix(PREFIX.encode())
        headers = [*scope["headers"], (b"x-forwarded-prefix", PREFIX.encode()), (b"x-forwarded-for", b"192.0.2.7")]
        seen = {**scope, "path": path, "raw_path": raw, "headers": headers, "client": (PROXY, 50000)}
        return await app(seen, receive, send)

    return proxy


@pytest.mark.timeout(120)
def test_made_up_requests_get_documented_answers_behind_a_proxy_too(browser):
    document = browser.get(f"{PREFIX}/api/v1/openapi.json").json()
    assert document["servers"] == [{"url": PREFIX}]
    schema = schemathesis.openapi.from_dict(document)
    schema.app = browser.app
    headers = {"Cookie": f"rota={browser.cookies['rota']}", "Sec-Fetch-Site": "same-origin", "Host": HOST}
    failed, called = {}, []
    for found in schema.get_all_operations():
        operation = found.ok()
        is_plugins = "/plugins/shop/" in operation.path
        called += [operation.path] * is_plugins

        @hypothesis.settings(
            max_examples=REQUESTS_OF_PLUGINS if is_plugins else REQUESTS,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(headers=headers, excluded_checks=[ignored_auth])

        if not is_plugins and (operation.method != "get" or operation.path.startswith("/health")):
            continue  # other tests call these; and the health is bad, since there is no worker
        try:
            check()
        except FailureGroup as error:
            failed[operation.label] = [str(each) for each in error.exceptions]

    assert len(called) == 3
    assert urlsplit(schema.get_base_url()).path == PREFIX
    assert not failed, pprint.pformat(failed, width=200)
    assert browser.get(f"{PREFIX}/api/v1/me").json()["role"] == "admin"
