"""The pages: they work without scripts, every link leads somewhere, and nothing of a run can become markup."""

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

import pytest
from pydantic import SecretStr

import core.web.pages
from core import Secret, every, job
from core.jobs.registry import Plugin, Registry
from core.ledger.listing import MOST_CHILDREN
from core.plugins import loading
from core.upkeep import carry_out_operation
from core.web.pages import page as pages
from tests.support.pages import BROWSER, OURS, local, read
from tests.support.web import bearer, serving

AT = datetime(2026, 1, 15, 3, tzinfo=UTC)
NASTY = "<script>alert('x')</script>\"&\u202e"
STATIC = Path(core.web.pages.__file__).parent / "static"


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk", pin: Annotated[str, Secret] = "0000", counts: list[int] | None = None):
    """Close the day."""


@job("poll", queue="mail")
def poll(run):
    """Poll."""


@pytest.fixture(autouse=True)
def registry(database):
    core = Plugin("core", "", "", (carry_out_operation,))
    plugins = (Plugin("billing", "", "", (close_day,)), Plugin("mail", "", "", (poll,)), core)
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


@pytest.fixture
def admin(database):
    return bearer(database, "admin")


def dead(ledger, **columns):
    columns |= {"args": json.dumps(columns.pop("args"))} if "args" in columns else {}
    given = {"state": "dead", "reason": "retries", "finished_at": AT, "queued_at": AT, **columns}
    return ledger.request("close-day", queue="billing", **given)


PATHS = [
    "/", "/runs", "/jobs", "/jobs/close-day", "/failures", "/queues", "/workers", "/why", "/why?job=close-day&at=03:00",
    "/pauses", "/orphans", "/orphans/messages", "/operations", "/plugins", "/releases", "/audit", "/tokens",
    "/find?q=x",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_page_without_data(client, admin, path):
    answer = client.get(path, headers=admin)
    page = read(answer)

    assert answer.status_code == 200
    assert page.inline == []
    assert len(page.ids) == len(set(page.ids))


def test_the_documentation_has_every_page_of_the_menu():
    table = (
        (Path(core.__file__).parents[1] / "docs/web.md").read_text().partition("## Pages")[2].partition("## The API")[0]
    )

    assert [
        path
        for path, _ in (*pages.NAV, *pages.FURTHER, *pages.OF_EVERYTHING, *pages.FOR_ADMINS)
        if f"`{path}`" not in table
    ] == []


@pytest.mark.parametrize("prefix", ["", "/x/rota"])
def test_every_link_of_every_page_leads_somewhere(database, ledger, admin, prefix):
    """The walk begins at the first page, and follows links to pages that the rest of the walk has not seen."""
    fill(ledger)
    waiting, seen = [f"http://127.0.0.1:9190{prefix}/"], set()

    with serving(web_prefix=prefix) as client:
        while waiting:
            address = waiting.pop()
            seen.add(address)
            answer = client.get(address, headers={**admin, **BROWSER}, follow_redirects=True)
            assert answer.status_code == 200, address
            if "text/html" in answer.headers["Content-Type"]:
                found = local(read(answer), str(answer.url))
                assert all(link.startswith(f"http://127.0.0.1:9190{prefix}/") for link in found)
                waiting += [link for link in found if shape(link) not in {shape(each) for each in [*seen, *waiting]}]

    paths = {address.removeprefix(f"http://127.0.0.1:9190{prefix}").partition("?")[0] for address in seen}
    assert {path.partition("?")[0] for path in PATHS} - {"/find"} <= paths


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_a_person_sees_no_form_that_would_be_refused(client, database, ledger, role):
    """Each form that changes something is sent. It may be refused for its values, but not for the role."""
    run, headers = fill(ledger), bearer(database, role)
    sent = 0

    for path in [*PATHS, f"/runs/{run}"]:
        answer = client.get(path, headers=headers)
        assert answer.status_code == (403 if path == "/tokens" else 200), path
        for form in read(answer).forms:
            if form.method == "post" and form.action != "/logout":
                done = client.post(form.action, data=form.fields, headers={**headers, **OURS})
                assert done.status_code in {200, 303, 409, 422}, (path, form, done.text)
                sent += 1

    assert (sent == 0) == (role == "viewer")


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path not in {"/plugins", "/releases", "/audit", "/tokens", "/orphans/messages"}]
)
def test_a_person_with_limits_sees_only_their_jobs(client, database, ledger, path):
    fill(ledger)
    limited = bearer(database, "operator", plugins=["mail"])

    answer = client.get(path, headers=limited)
    page = read(answer)

    if "close-day" in path:
        assert answer.status_code == 403
    else:
        assert answer.status_code == 200
        assert "close-day" not in page.text
        assert not {"/plugins", "/releases", "/audit", "/tokens"} & set(page.links)


def test_a_person_with_limits_does_not_see_the_relatives_of_a_run_in_other_plugins(client, database, ledger):
    limited = bearer(database, "operator", plugins=["mail"])
    parent = dead(ledger, key="secret-parent")
    run = ledger.request("poll", queue="mail", parent_id=parent, state="dead", reason="retries", finished_at=AT)
    seen = ledger.request("poll", queue="mail", parent_id=run, key="own-child")
    for _ in range(MOST_CHILDREN + 1):
        dead(ledger, key="secret-child", parent_id=run)

    page = read(client.get(f"/runs/{run}", headers=limited))
    found = client.get(f"/api/v1/runs/{run}", headers=limited).json()

    assert "own-child" in page.text
    assert not re.search("close-day|secret", page.text)
    assert [each["id"] for each in found["enqueued"]] == [seen]
    assert (found["enqueued_by"], found["has_enqueued_more"]) == (None, False)


def shape(link):
    """A link without its numbers and the values of its query: one of each shape is followed."""
    parts = urlsplit(link)
    return re.sub(r"\d+", "1", parts.path), tuple(sorted(dict(parse_qsl(parts.query))))


def fill(ledger):
    """Insert runs in several states; return the id of a dead one."""
    now = datetime.now(UTC)
    ledger.request("poll", queue="mail", state="orphaned", former_state="queued", reason="unknown", finished_at=now)
    ledger.request(
        "close-day", queue="billing", state="succeeded", slot=AT, started_at=AT, finished_at=AT, worker="w:1"
    )
    return dead(ledger, error="boom 42", key="42", finished_at=now)


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

    def test_a_mistyped_token_does_not_forget_the_page_that_was_wanted(self, client):
        sent = {"secret": "wrong", "back": "/runs?state=dead"}
        (form,) = read(client.post("/login", data=sent, headers=OURS)).forms
        (of_another,) = read(client.post("/login", data={**sent, "back": "//evil.example"}, headers=OURS)).forms

        assert form.fields["back"] == "/runs?state=dead"
        assert of_another.fields["back"] == "/"


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
            sent = client.post("/plans", data={"action": "retry"}, headers={**operator, **OURS})

        assert sent.status_code == 503
        assert "Nothing is known to be changed" in read(sent).text
        assert "refresh" not in sent.text
        assert "Ask again" not in sent.text
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

    def test_large_values_are_shown_in_part(self, client, operator, ledger):
        """Arguments of 64 KiB, and an error of 2,000 characters without a space."""
        run = dead(
            ledger, args={"region": "r" * 65_000}, error="e" * 2000, key="k" * 500, finished_at=datetime.now(UTC)
        )

        answers = [client.get(path, headers=operator) for path in ("/", "/runs", "/failures", f"/runs/{run}")]

        assert [answer.status_code for answer in answers] == [200] * 4
        assert max(len(answer.content) for answer in answers) < 40_000

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


class TestPlans:
    def send(self, client, headers, address, **fields):
        return client.post(address, data=fields, headers={**headers, **OURS})

    def test_a_plan_is_shown_confirmed_and_carried_out(self, client, operator, ledger):
        chosen = [dead(ledger), dead(ledger)]
        dead(ledger)

        shown = self.send(client, operator, "/plans", action="retry", ids=chosen)
        (form,) = [form for form in read(shown).forms if form.action.endswith("/execute")]
        done = self.send(client, operator, form.action, **form.fields)

        assert "Retry 2 runs?" in read(shown).text
        assert shown.url.path.startswith("/plans/")
        assert done.url.path.startswith("/operations/")
        assert "0 changed, 0 left out, 2 remain" in read(done).text
        assert ledger.value("SELECT count(*) FROM rota_runs WHERE job = 'carry-out-operation'") == 1

    def test_a_plan_of_a_cancel_needs_its_phrase(self, client, operator, ledger):
        run = ledger.request("close-day", queue="billing")

        shown = self.send(client, operator, "/plans", action="cancel", ids=[run])
        (form,) = [form for form in read(shown).forms if form.action.endswith("/execute")]
        refused = self.send(client, operator, form.action, digest=form.fields["digest"], phrase="yes")
        done = self.send(client, operator, form.action, digest=form.fields["digest"], phrase="cancel 1 runs")

        assert refused.status_code == 409
        assert done.url.path.startswith("/operations/")

    def test_a_group_of_failures_is_planned_by_what_its_errors_share(self, client, operator, ledger):
        for number in range(3):
            dead(ledger, error=f"Timeout: no answer from host {number}", finished_at=datetime.now(UTC))
        dead(ledger, error="Boom", finished_at=datetime.now(UTC))

        page = read(client.get("/failures", headers=operator))
        form = page.forms[-2] if page.forms[-1].fields.get("error") == "Boom" else page.forms[-1]
        shown = self.send(client, operator, "/plans", **{**form.fields, "action": "drop"})

        assert "Timeout: no answer from host" in form.fields["error"]
        assert "Drop 3 runs?" in read(shown).text

    def test_an_empty_choice_is_refused(self, client, operator, ledger):
        dead(ledger)

        assert self.send(client, operator, "/plans", action="drop").status_code == 409


class TestStart:
    def start(self, client, headers, **fields):
        page = read(client.get("/jobs/close-day", headers=headers))
        (form,) = [form for form in page.forms if form.action == "/jobs/close-day/runs"]
        return client.post(form.action, data={**form.fields, **fields}, headers={**headers, **OURS})

    def test_a_form_requests_a_run_with_its_arguments(self, client, operator, ledger):
        answer = self.start(
            client, operator, **{"arg.region": "fr", "arg.counts": "[1, 2]", "arg.pin": "1234", "key": "k"}
        )

        (run,) = ledger.runs("close-day")
        assert answer.url.path == f"/runs/{run.id}"
        assert (run.args, run.key) == ({"region": "fr", "counts": [1, 2], "pin": "1234"}, "k")
        assert "1234" not in answer.text

    def test_empty_fields_have_their_defaults(self, client, operator, ledger):
        self.start(client, operator)

        (run,) = ledger.runs("close-day")
        assert run.args == {}

    def test_wrong_arguments_are_said_and_the_form_keeps_what_was_written(self, client, operator, ledger):
        answer = self.start(client, operator, **{"arg.region": "fr", "arg.counts": "[1,", "arg.pin": "1234"})
        (form,) = [form for form in read(answer).forms if form.action == "/jobs/close-day/runs"]

        assert answer.status_code == 409
        assert "counts is not JSON" in read(answer).text
        assert form.fields["arg.region"] == "fr"
        assert "1234" not in answer.text
        assert ledger.runs("close-day") == []

    def test_a_form_that_is_sent_twice_requests_one_run(self, client, operator, ledger):
        page = read(client.get("/jobs/close-day", headers=operator))
        (form,) = [form for form in page.forms if form.action == "/jobs/close-day/runs"]

        for _ in range(2):
            client.post(form.action, data=form.fields, headers={**operator, **OURS})

        assert len(ledger.runs("close-day")) == 1

    def test_a_run_can_be_requested_again_with_other_arguments(self, client, operator, ledger):
        run = dead(ledger, args={"region": "atlantis", "pin": "9999"}, key="42")

        answer = client.get(f"/jobs/close-day?like={run}", headers=operator)
        (form,) = [form for form in read(answer).forms if form.action == "/jobs/close-day/runs"]

        assert (form.fields["arg.region"], form.fields["key"]) == ("atlantis", "42")
        assert "9999" not in answer.text


class TestPauses:
    def test_a_pause_is_begun_and_ended(self, client, operator, ledger):
        page = read(client.get("/jobs/close-day", headers=operator))
        (form,) = [form for form in page.forms if form.action == "/pauses"]

        paused = client.post(form.action, data=form.fields, headers={**operator, **OURS})
        (form,) = [form for form in read(paused).forms if form.action == "/pauses/end"]
        resumed = client.post(form.action, data=form.fields, headers={**operator, **OURS})

        assert paused.url.path == resumed.url.path == "/jobs/close-day"
        assert "job:close-day is paused." in read(paused).text
        assert "The pause of job:close-day has ended." in read(resumed).text


class TestNow:
    @pytest.mark.parametrize(
        ("scope", "is_theirs"), [("queue:mail", True), ("everything", True), ("job:close-day", False)]
    )
    def test_a_person_with_limits_sees_the_pauses_of_their_jobs(self, client, database, operator, scope, is_theirs):
        client.post("/pauses", data={"scope": scope, "back": "/pauses"}, headers={**operator, **OURS})

        text = read(client.get("/", headers=bearer(database, "viewer", plugins=["mail"]))).text

        assert (f"{scope}, by the-operator" in text) == is_theirs
        assert ("nothing is paused" in text) != is_theirs


class TestTokens:
    def test_a_token_is_made_shown_once_and_revoked(self, client, admin):
        given = {"name": "grafana", "role": "viewer", "days": "7", "plugins": "mail"}

        made = client.post("/tokens", data=given, headers={**admin, **OURS})
        secret = next(word for word in read(made).text.split() if word.startswith("rota_token_"))
        again = client.get("/tokens", headers=admin)
        me = client.get("/api/v1/me", headers={"Authorization": f"Bearer {secret}"}).json()
        client.post("/tokens/revoke", data={"name": "grafana"}, headers={**admin, **OURS})

        assert (me["name"], me["role"], me["plugins"]) == ("grafana", "viewer", ["mail"])
        assert secret not in again.text
        assert client.get("/api/v1/me", headers={"Authorization": f"Bearer {secret}"}).status_code == 401

    def test_the_session_of_another_browser_is_ended(self, client, admin, operator):
        token = operator["Authorization"].removeprefix("Bearer ")
        client.post("/login", data={"secret": token}, headers=OURS)
        assert client.get("/runs", follow_redirects=False).status_code == 200

        page = read(client.get("/tokens", headers=admin))
        (action,) = [action for action in page.posts() if "/sessions/" in action]
        done = client.post(action, headers={**admin, **OURS})

        assert "The session has ended." in read(done).text
        assert client.get("/runs", follow_redirects=False).status_code == 303


class TestWhy:
    def test_the_link_to_send_asks_the_same_question(self, client, operator, ledger):
        succeeded = fill(ledger) - 1

        page = read(client.get("/why?job=close-day&at=2026-01-15T03:00", headers=operator))
        (link,) = [link for link in page.links if "at=2026-01-15T03%3A00Z" in link]
        again = read(client.get(link, headers=operator))

        assert "close-day succeeded at Thu 15 Jan" in page.text
        assert again.text.partition("To send")[0].count(f"Run {succeeded} for the slot") == 1


class TestFind:
    @pytest.mark.parametrize(
        ("asked", "path"), [("1", "/runs/1"), ("close-day", "/jobs/close-day"), ("CLOSE", "/jobs/close-day")]
    )
    def test_a_run_or_a_job_is_found(self, client, operator, asked, path):
        answer = client.get("/find", params={"q": asked}, headers=operator, follow_redirects=False)

        assert answer.headers["Location"] == path
