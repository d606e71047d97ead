"""Secret arguments of a run: what the ledger records, and what people see."""

import io
import json
import logging
from typing import Annotated

import pytest
import structlog

from core import Secret, job
from core.jobs.registry import Registry
from core.ledger import history, releases
from core.observability import logs
from core.observability.redaction import HIDDEN
from core.operations import listing, orphans, why, workers
from core.operations.redaction import redactor
from core.plugins import loading
from core.testing import registry_of

TOKEN = "tok-9f8e7d6c"
ARGS = f'{{"to": "ann", "token": "{TOKEN}", "form": {{"password": "hunter2-hunter2"}}}}'


@job("mail", max_retries=0)
def mail(run, to: str, token: Annotated[str, Secret], form: dict[str, str]):
    run.log.warning("mail.odd", sent_with=token)
    logging.getLogger("library").warning("GET /?token=%s", token)
    raise ValueError(f"{to} refused {token} and {form['password']}")


@job("fetch")
def fetch(run, token: Annotated[str, Secret]):
    return {"url": f"https://host/?t={token}", "password": "hunter2-hunter2", "left": 3}


@pytest.fixture(autouse=True)
def installed(use_jobs, database, monkeypatch):
    monkeypatch.setenv("ROTA_REDACT", "password")
    use_jobs(mail, fetch)


@pytest.fixture
def lines():
    """Return a function that returns the lines of the log, as a worker writes them."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = list(root.handlers), root.level
    root.handlers = [logging.StreamHandler(stream)]
    logs.configure("json")

    def lines():
        logs.flush()
        return stream.getvalue().splitlines()

    yield lines
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_neither_the_recorded_error_nor_the_log_has_a_secret(run_job, lines):
    row = run_job(mail, args={"to": "ann", "token": TOKEN, "form": {"password": "hunter2-hunter2"}})

    assert row.error == f"ValueError: ann refused {HIDDEN} and {HIDDEN}"
    assert row.args["token"] == TOKEN
    told = "\n".join(lines())
    assert told.count(HIDDEN) >= 5
    assert f'"sent_with": "{HIDDEN}"' in told
    assert "Traceback" in told
    assert TOKEN not in told
    assert "hunter2" not in told


def test_a_kept_attempt_has_no_secret_in_its_traceback_and_the_end_of_its_log(run_job, ledger):
    logging.getLogger().addHandler(tail := logs.TailHandler())
    try:
        row = run_job(mail, args={"to": "ann", "token": TOKEN, "form": {"password": "hunter2-hunter2"}})
    finally:
        logging.getLogger().removeHandler(tail)

    (attempt,) = ledger.rows("SELECT * FROM rota_attempts WHERE run_id = :id", id=row.id)
    assert f"ValueError: ann refused {HIDDEN} and {HIDDEN}" in attempt.traceback
    assert f"token={HIDDEN}" in attempt.log
    kept = " ".join([attempt.error, attempt.traceback, attempt.log])
    assert TOKEN not in kept
    assert "hunter2" not in kept


def test_progress_in_the_log_has_no_value_of_a_redacted_name(run_job, lines, monkeypatch):
    monkeypatch.setattr("core.middleware.db_session.PROGRESS_SECONDS", 0)

    @job("steps")
    def steps(run):
        run.checkpoint({"done": 1, "password": "hunter2-hunter2"})

    assert run_job(steps).state == "succeeded"
    (told,) = [json.loads(line) for line in lines() if "run.progress" in line]
    assert told["progress"] == {"done": 1, "password": HIDDEN}


def test_after_the_run_its_thread_hides_nothing(run_job, lines):
    run_job(mail, args={"to": "ann", "token": TOKEN, "form": {"password": "x"}})
    logging.getLogger().warning("the next run mentions %s", TOKEN)

    assert TOKEN in lines()[-1]


def test_results_and_errors_are_shown_without_secrets(run_job, database, ledger):
    run_id = run_job(fetch, args={"token": TOKEN}).id
    failed = ledger.request("mail", args=ARGS, state="dead", error=f"ValueError: {TOKEN}", finished_at="now")
    at = ledger.run(failed).queued_at.isoformat()

    with database.connect() as connection:
        shown = {run.id: run for run in listing.newest(connection, loading.current())}
        told = why.ask(connection, loading.current(), "mail", at=at)
        answer = why.ask(connection, loading.current(), "fetch", at=ledger.run(run_id).queued_at.isoformat())

    assert shown[run_id].result == {"url": f"https://host/?t={HIDDEN}", "password": HIDDEN, "left": 3}
    assert shown[failed].error == f"ValueError: {HIDDEN}"
    for found in (told, answer):
        assert HIDDEN in " ".join(found.answer)
        assert TOKEN not in found.model_dump_json()
        assert "hunter2" not in found.model_dump_json()


def test_a_run_in_full_and_its_attempts_are_shown_without_secrets(run_job, database, ledger):
    run_id = ledger.request("mail", args=ARGS, state="dead", error=f"ValueError: {TOKEN}", finished_at="now")
    ledger.do(
        "INSERT INTO rota_attempts (run_id, attempt, outcome, error, traceback, log) "
        "VALUES (:id, 1, 'failed', :text, :text, :text)",
        id=run_id,
        text=f"sent {TOKEN}",
    )

    with database.connect() as connection:
        found = listing.details(connection, loading.current(), run_id)

    assert found.args == {"to": "ann", "token": HIDDEN, "form": {"password": HIDDEN}}
    (attempt,) = found.attempts
    assert {attempt.error, attempt.traceback, attempt.log} == {f"sent {HIDDEN}"}
    assert TOKEN not in found.model_dump_json()


def test_a_failed_attempt_is_kept_without_secrets(run_job, database, ledger):
    run_id = run_job(mail, args={"to": "ann", "token": TOKEN, "form": {"password": "hunter2-hunter2"}}).id

    (attempt,) = ledger.rows("SELECT error, traceback FROM rota_attempts WHERE run_id = :id", id=run_id)
    assert f"ann refused {HIDDEN} and {HIDDEN}" in attempt.error
    assert TOKEN not in attempt.traceback
    assert "hunter2" not in attempt.traceback


def test_the_progress_of_what_is_at_work_is_shown_without_secrets(executor, database, ledger):
    run_id = ledger.request(
        "mail", args=ARGS, state="running", progress=f'{{"token": "{TOKEN}"}}', started_at="now", attempt=1
    )
    ledger.do(
        "UPDATE rota_runs SET process_id = :process, token = 1 WHERE id = :id",
        process=executor.membership.process_id,
        id=run_id,
    )

    with database.connect() as connection:
        found = workers.listed(connection, loading.current())

    (live,) = found.live
    assert [run.progress for run in live.runs] == [{"token": HIDDEN}]


def test_orphans_are_shown_without_secrets(database, ledger):
    ledger.request("mail", args=ARGS, state="orphaned", error=f"ValueError: {TOKEN}", finished_at="now")

    with database.connect() as connection:
        found = orphans.found(connection, loading.current())

    assert found.runs[0].error == f"ValueError: {HIDDEN}"


def test_arguments_are_hidden_by_name_and_those_of_an_unknown_job_whole(database, ledger):
    row = ledger.run(ledger.request("mail", args=ARGS))

    with database.connect() as connection:
        here = redactor(connection, loading.current())
        elsewhere = redactor(connection, Registry())

    assert here.arguments("mail", row.args) == {"to": "ann", "token": HIDDEN, "form": {"password": HIDDEN}}
    assert elsewhere.arguments("mail", row.args) == HIDDEN
    assert elsewhere.arguments("mail", {}) == {}


def test_an_argument_that_another_release_declares_secret_is_hidden_too(database, ledger):
    @job("fetch")
    def as_it_was(run, token: str, key: Annotated[str, Secret]):
        pass

    run_id = ledger.request(
        "fetch", args='{"key": "former-key"}', state="dead", error="no former-key", finished_at="now"
    )
    with database.begin() as connection:
        releases.record(connection, releases.of(registry_of(as_it_was)))
        hiding = redactor(connection, loading.current())
        shown = hiding.run(history.run(connection, run_id))

    assert (shown.error, shown.args) == (f"no {HIDDEN}", {"key": HIDDEN})
