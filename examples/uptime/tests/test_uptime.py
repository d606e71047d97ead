"""The plugin's rules, against a web server of the test's own; then that its jobs run."""

import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rota_uptime import sites
from rota_uptime.jobs import probe, probe_all
from rota_uptime.models import Base, Site
from sqlalchemy import text
from sqlalchemy.orm import Session

from core.testing import schema_differences

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
#: Where nothing listens.
NOBODY = "http://127.0.0.1:1/"


class Answer(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web():
    """A web server; ``web(503)`` is a page that answers 503."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda status: f"http://127.0.0.1:{server.server_port}/{status}"
        server.shutdown()


def test_the_migrations_make_what_the_models_say(database):
    assert schema_differences(database, Base.metadata, plugin="uptime") == []


@pytest.fixture
def session(database):
    with Session(database) as session:
        yield session


@pytest.fixture
def watch(session):
    """Commits a site; returns its id."""

    def watch(url, **columns):
        site = Site(url=url, **columns)
        session.add(site)
        session.commit()
        return site.id

    return watch


@pytest.mark.parametrize(("status", "is_up"), [(200, True), (404, True), (500, False), (503, False)])
def test_a_site_is_up_unless_it_fails(web, status, is_up):
    assert sites.answers(web(status), 5) is is_up


@pytest.mark.parametrize("url", [NOBODY, "http://no.such.name.invalid/", "no url at all"])
def test_a_site_that_cannot_be_reached_is_down(url):
    assert sites.answers(url, 5) is False


def test_a_change_is_recorded_with_its_time_and_nothing_else_is(session, watch):
    site_id = watch("http://x/")

    found = [
        sites.record(session, site_id, is_up, NOON + timedelta(minutes=minute))
        for minute, is_up in enumerate([True, True, False, False, True])
    ]

    assert found == [True, False, True, False, True]
    assert session.get_one(Site, site_id, populate_existing=True).changed_at == NOON + timedelta(minutes=4)


def test_a_site_that_was_deleted_meanwhile_is_no_change(session):
    assert sites.record(session, 7, True, NOON) is False


def test_every_site_gets_a_run_of_its_own(run_job, watch, database):
    keys = [str(watch(f"http://{name}/")) for name in "ab"]

    assert run_job(probe_all, now=NOON).result == {"sites": 2}

    with database.connect() as connection:
        runs = connection.execute(text("SELECT key FROM rota_runs WHERE job = 'uptime-probe' ORDER BY id")).scalars()
        assert list(runs) == keys


def test_a_probe_records_what_it_finds(run_job, watch, session):
    site_id = watch(NOBODY, is_up=True)

    run = run_job(probe, args={"site_id": site_id, "url": NOBODY}, now=NOON)

    assert (run.state, run.result) == ("succeeded", {"is_up": False, "changed": True})
    assert session.get_one(Site, site_id, populate_existing=True).changed_at == NOON
