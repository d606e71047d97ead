"""The pages: they work without scripts, every link leads somewhere, and nothing of a run can become markup."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

import core.web.pages
from core import every, job
from core.jobs.registry import Plugin, Registry
from core.plugins import loading
from tests.support.pages import BROWSER, OURS, local, read
from tests.support.web import bearer, serving

AT = datetime(2026, 1, 15, 3, tzinfo=UTC)
NASTY = "<script>alert('x')</script>\"&\u202e"
STATIC = Path(core.web.pages.__file__).parent / "static"


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk"):
    """Close the day."""


@job("poll", queue="mail")
def poll(run):
    """Poll."""


@pytest.fixture(autouse=True)
def registry(database):
    plugins = (Plugin("billing", "", "", (close_day,)), Plugin("mail", "", "", (poll,)))
    with loading.using(Registry(plugins)) as registry:
        yield registry


@pytest.fixture
def client(database):
    with serving() as client:
        client.headers.update(BROWSER)
        yield client


@pytest.fixture
def operator(database):
    return bearer(database, "operator")


def dead(ledger, **columns):
    columns |= {"args": json.dumps(columns.pop("args"))} if "args" in columns else {}
    given = {"state": "dead", "reason": "retries", "finished_at": AT, "queued_at": AT, **columns}
    return ledger.request("close-day", queue="billing", **given)


@pytest.mark.parametrize("path", ["/", "/runs", "/jobs", "/jobs/close-day"])
def test_a_page_without_data(client, operator, path):
    answer = client.get(path, headers=operator)
    page = read(answer)

    assert answer.status_code == 200
    assert page.inline == []
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize("prefix", ["", "/x/rota"])
def test_every_link_of_every_page_leads_somewhere(database, ledger, operator, prefix):
    """The walk begins at the first page, and follows links to pages that the rest of the walk has not seen."""
    dead(ledger, error="boom", key="42")
    waiting, seen = [f"http://127.0.0.1:9190{prefix}/"], set()

    with serving(web_prefix=prefix) as client:
        while waiting:
            address = waiting.pop()
            seen.add(address)
            answer = client.get(address, headers={**operator, **BROWSER}, follow_redirects=True)
            assert answer.status_code == 200, address
            if "text/html" in answer.headers["Content-Type"]:
                found = local(read(answer), str(answer.url))
                assert all(link.startswith(f"http://127.0.0.1:9190{prefix}/") for link in found)
                waiting += [link for link in found if link not in seen and link not in waiting]

    assert f"http://127.0.0.1:9190{prefix}/runs" in seen


class TestRuns:
    def test_a_hostile_text_is_shown_as_text(self, client, operator, ledger):
        run = dead(ledger, key=NASTY, error=NASTY, reason=NASTY, args={NASTY: NASTY}, finished_at=datetime.now(UTC))

        for path in ("/", "/runs", f"/runs/{run}"):
            answer = client.get(path, headers=operator)
            assert "<script>alert" not in answer.text
            assert read(answer).text.count("<script>alert('x')</script>") >= 1

    def test_the_filter_stays_in_the_address_without_its_empty_fields(self, client, operator, ledger):
        dead(ledger)
        ledger.request("poll", queue="mail", queued_at=AT)

        sent = client.get("/runs?state=dead&job=&key=", headers=operator, follow_redirects=False)
        page = read(client.get(sent.headers["Location"], headers=operator))

        assert sent.headers["Location"] == "/runs?state=dead"
        assert "close-day" in page.text
        assert "poll" not in page.text

    def test_the_pages_of_a_list_keep_the_filter(self, client, operator, ledger):
        for _ in range(3):
            dead(ledger)

        first = read(client.get("/runs?state=dead&limit=2", headers=operator))
        (older,) = [link for link in first.links if "cursor=" in link]
        second = read(client.get(older, headers=operator))

        assert "state=dead" in older
        assert "This is the end of the list" in second.text
        assert "/runs?state=dead&limit=2" in second.links


class TestTimes:
    def test_an_instant_is_shown_in_the_zone_of_its_job_with_utc_in_its_title(self, client, operator, ledger):
        dead(ledger, queued_at=datetime(2026, 1, 15, 3, tzinfo=UTC))

        text = client.get("/runs", headers=operator).text

        assert 'datetime="2026-01-15T03:00:00Z" title="2026-01-15 03:00:00 UTC, ' in text


class TestLogIn:
    def test_a_browser_without_a_session_is_sent_to_the_log_in_and_back(self, client, database, operator):
        sent = client.get("/runs?state=dead", follow_redirects=False)
        page = read(client.get(sent.headers["Location"]))
        (form,) = page.forms
        token = operator["Authorization"].removeprefix("Bearer ")
        back = client.post(form.action, data={**form.fields, "secret": token}, headers=OURS, follow_redirects=False)

        assert sent.status_code == 303
        assert form.fields["back"] == "/runs?state=dead"
        assert back.headers["Location"] == "/runs?state=dead"
        assert client.get("/runs?state=dead").status_code == 200

    @pytest.mark.parametrize("place", ["//evil.example", "https://evil.example", "/\\evil.example", "/\tx", "x"])
    def test_the_log_in_leads_to_no_other_server(self, client, operator, place):
        token = operator["Authorization"].removeprefix("Bearer ")

        answer = client.post("/login", data={"secret": token, "back": place}, headers=OURS, follow_redirects=False)

        assert answer.headers["Location"] == "/"

    def test_a_wrong_token_is_said_on_the_page_of_the_log_in(self, client):
        answer = client.post("/login", data={"secret": "wrong"}, headers=OURS, follow_redirects=False)

        assert answer.status_code == 401
        assert "mistyped" in read(answer).text


class TestErrors:
    def test_an_unknown_address_is_a_page_for_a_browser(self, client, operator):
        answer = client.get("/no/such/page", headers=operator)

        assert answer.status_code == 404
        assert "No such address" in read(answer).text

    def test_a_program_gets_a_problem(self, client, operator):
        answer = client.get("/no/such/page", headers={**operator, "Accept": "*/*"})

        assert answer.headers["Content-Type"] == "application/problem+json"

    def test_a_wrong_filter_is_said_with_the_way_back(self, client, operator):
        referer = "http://127.0.0.1:9190/runs?job=close-day"

        answer = client.get("/runs?since=yesterday", headers={**operator, "Referer": referer})

        assert answer.status_code == 409
        assert "yesterday" in read(answer).text
        assert "/runs?job=close-day" in read(answer).links

    def test_without_postgresql_a_page_says_so_and_asks_again(self, operator):
        unreachable = SecretStr("postgresql://nobody@127.0.0.1:1/none")

        with serving(database_url=unreachable) as client:
            answer = client.get("/", headers={**operator, **BROWSER})

        assert answer.status_code == 503
        assert "PostgreSQL" in read(answer).text
        assert '<meta http-equiv="refresh" content="5">' in answer.text


class TestAssets:
    def test_a_browser_keeps_the_files_of_this_release_only(self, client, operator):
        page = read(client.get("/", headers=operator))
        (style,) = [link for link in page.links if link.endswith(".css")]

        answer = client.get(style)
        of_another = client.get(style.replace(style.split("/")[2], "0123456789ab"))

        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert of_another.headers["Cache-Control"] == "no-cache"
        assert answer.text == of_another.text == (STATIC / "rota.css").read_text()

    @pytest.mark.parametrize(
        "path", ["/static/x/nothing.css", "/static/x/..%2Fpage.py", "/static/x/vendor/vendor.json"]
    )
    def test_nothing_else_is_served(self, client, path):
        assert client.get(path).status_code == 404

    def test_files_of_other_projects_are_those_that_were_checked(self):
        known = json.loads((STATIC / "vendor/vendor.json").read_text())

        found = {path.name: hashlib.sha384(path.read_bytes()).hexdigest() for path in (STATIC / "vendor").glob("*.js")}

        assert found == {name: each["sha384"] for name, each in known.items()}

    def test_the_first_view_is_small(self, client, operator):
        """All of it is compressed: the page, the style and the scripts."""
        page = client.get("/", headers=operator)
        files = [link for link in read(page).links if "/static/" in link]
        with client.stream("GET", "/", headers=operator) as answer:
            size = len(b"".join(answer.iter_raw()))
        for link in files:
            with client.stream("GET", link) as answer:
                size += len(b"".join(answer.iter_raw()))

        assert size <= 60 * 1024


class TestDeeds:
    def sent(self, client, run, deed, headers, **fields):
        """The page after the form of a deed on the page of a run was sent."""
        page = read(client.get(f"/runs/{run}", headers=headers))
        (form,) = [form for form in page.forms if form.action.endswith(deed)]
        return client.post(form.action, data={**form.fields, **fields}, headers={**headers, **OURS})

    @pytest.mark.parametrize(
        ("state", "deed", "after"),
        [("dead", "retry", "retrying"), ("queued", "drop", "dead"), ("queued", "cancel", "dead")],
    )
    def test_a_deed_is_done_and_the_browser_comes_back(self, client, operator, ledger, state, deed, after):
        run = dead(ledger) if state == "dead" else ledger.request("close-day", queue="billing")

        answer = self.sent(client, run, deed, operator, reason="wrong list")

        assert (answer.status_code, answer.url.path) == (200, f"/runs/{run}")
        assert f"Run {run} is" in read(answer).text  # it is said once
        assert f"Run {run} is" not in read(client.get(f"/runs/{run}", headers=operator)).text
        assert ledger.run(run).state == after

    def test_a_viewer_sees_no_form_that_changes_something(self, client, database, ledger):
        run = dead(ledger)
        viewer = bearer(database, "viewer")

        page = read(client.get(f"/runs/{run}", headers=viewer))
        refused = client.post(f"/runs/{run}/retry", headers={**viewer, **OURS})

        assert page.posts() == {"/logout"}
        assert refused.status_code == 403
        assert "viewer" in read(refused).text

    def test_a_form_of_another_site_is_refused(self, client, operator, ledger):
        run = dead(ledger)
        client.post("/login", data={"secret": operator["Authorization"].removeprefix("Bearer ")}, headers=OURS)

        answer = client.post(f"/runs/{run}/retry", headers={"Sec-Fetch-Site": "cross-site"})

        assert answer.status_code == 403
        assert ledger.run(run).state == "dead"

    def test_a_deed_that_comes_too_late_is_refused_in_words(self, client, operator, ledger):
        run = ledger.request("close-day", queue="billing", state="succeeded", finished_at=AT)

        answer = client.post(f"/runs/{run}/retry", headers={**operator, **OURS})

        assert answer.status_code == 409
        assert "succeeded, not dead" in read(answer).text


class TestRun:
    def test_a_run_shows_its_story_its_attempts_and_its_neighbours(self, client, operator, ledger):
        run = dead(ledger, error="Boom: no answer", args={"region": "uk"}, failures=4)

        text = read(client.get(f"/runs/{run}", headers=operator)).text

        assert f"Run {run}, requested" in text
        assert "all its 4 attempts failed; the last error: Boom: no answer" in text
        assert "region" in text

    def test_a_viewer_sees_no_arguments(self, client, database, ledger):
        run = dead(ledger, args={"region": "atlantis"})

        text = client.get(f"/runs/{run}", headers=bearer(database, "viewer")).text

        assert "atlantis" not in text
        assert "hidden" in text

    def test_a_job_that_only_the_ledger_knows_has_a_page(self, client, operator, ledger):
        ledger.request("gone-job", queue="billing", state="dead", finished_at=AT)

        answer = client.get("/jobs/gone-job", headers=operator)

        assert answer.status_code == 200
        assert "No plugin that is loaded here has this job" in read(answer).text
