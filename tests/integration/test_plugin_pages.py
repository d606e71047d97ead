"""Pages that plugins bring: a route with a title is shown as a table or as facts, to those who may call it."""

import sys
import types

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import Session

from core import NotFound, Route
from core.jobs.registry import Plugin, Registry
from core.plugins import loading
from tests.support.pages import BROWSER, read
from tests.support.web import bearer, serving

NASTY = "<b onclick=x>'\"&"
MODULE = "pages_of_a_test"


class Shelf(BaseModel):
    """A shelf."""

    name: str
    note: str | None
    parts: dict[str, int]


def shelves(session: Session, limit: int = 10) -> list[Shelf]:
    """List the shelves."""
    return [Shelf(name=name, note=None, parts={}) for name in ("upper", "a/b", NASTY)][:limit]


def shelf(session: Session, name: str) -> Shelf:
    """Return a shelf."""
    if name != "upper":
        raise NotFound(f"there is no shelf {name}")
    return Shelf(name=name, note=NASTY, parts={"screws": 3})


@pytest.fixture(autouse=True)
def registry(database):
    module = types.ModuleType(MODULE)
    vars(module).update(shelves=shelves, shelf=shelf)
    routes = (
        Route("GET", "/shelves", f"{MODULE}:shelves", "viewer", "Shelves"),
        Route("GET", "/shelves/{name}", f"{MODULE}:shelf", "operator", "Shelf"),
    )
    sys.modules[MODULE] = module
    with loading.using(Registry((Plugin("store", "", "", routes=routes), Plugin("mail", "", "")))) as registry:
        yield registry
    del sys.modules[MODULE]


@pytest.fixture
def client(database):
    with serving() as client:
        client.headers.update(BROWSER)
        yield client


def test_a_list_is_a_table_that_leads_to_the_page_of_each_item(client, database):
    operator = bearer(database, "operator")

    first = read(client.get("/", headers=operator))
    answer = client.get("/plugins/store/shelves", headers=operator)
    page = read(answer)

    assert "/plugins/store/shelves" in first.links
    assert "<b onclick" not in answer.text
    assert [link for link in page.links if link.startswith("/plugins/store/shelves/")] == [
        "/plugins/store/shelves/upper",
        "/plugins/store/shelves/%3Cb%20onclick%3Dx%3E%27%22%26",
    ]  # a name with a slash cannot be a part of a path
    assert "<b onclick=x>" in page.text


def test_an_object_is_shown_as_facts(client, database):
    page = read(client.get("/plugins/store/shelves/upper", headers=bearer(database, "operator")))

    assert page.text.count("<b onclick=x>") == 1
    assert '"screws": 3' in page.text


def test_a_page_needs_the_role_of_its_route(client, database):
    viewer, limited = bearer(database, "viewer"), bearer(database, "admin", plugins=["mail"])

    assert client.get("/plugins/store/shelves/upper", headers=viewer).status_code == 403
    assert client.get("/plugins/store/shelves", headers=limited).status_code == 403
    assert "/plugins/store/shelves" not in read(client.get("/", headers=limited)).links


def test_what_is_wrong_is_said_on_a_page(client, database):
    viewer = bearer(database, "viewer")

    wrong = client.get("/plugins/store/shelves?limit=many", headers=viewer)
    missing = client.get("/plugins/store/shelves/lower", headers=bearer(database, "operator"))

    assert (wrong.status_code, missing.status_code) == (422, 404)
    assert "limit" in read(wrong).text
    assert "there is no shelf lower" in read(missing).text
