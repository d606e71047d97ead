"""What operators see of limits: ``rota limits``, ``rota why``, ``rota check``, the details of a run, and the metric."""

import json
import re
from datetime import datetime, timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from core import Limit, Run, close_limit, enqueue, every, job
from core import database as databases
from core.cli import main
from core.dispatcher.overdue_alarm import Watch
from core.ledger import limit_use, retention
from core.ledger.claims import Verdict
from core.observability import metrics
from core.operations import health, why
from core.testing import registry_of
from core.worker.claiming import limits_of


@job("poll", limits=[Limit("imap:{host}", at_once=1), Limit("polls", most=5, per=timedelta(minutes=1))])
def poll(run: Run, host: str = "a") -> None:
    """Do nothing."""


@pytest.fixture
def rota(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, words, catch_exceptions=False)


@pytest.fixture
def full(database, use_jobs, start_process):
    """Let one run work on host a, and another run wait for the limit. Return the id of the second run."""
    use_jobs(poll)
    process = start_process(jobs=[poll])
    with Session(database) as session, session.begin():
        asked = [enqueue(session, "poll") for _ in range(2)]
    found = [process.claim(database, each, "poll", limits=lambda args: limits_of(poll, args))[0] for each in asked]
    assert found == [Verdict.RUNNING, Verdict.LIMITED]
    return asked[1]


@pytest.mark.usefixtures("full")
class TestLimits:
    def test_limits_are_listed_with_their_use(self, rota, database):
        with Session(database) as session, session.begin():
            close_limit(session, "imap:b", until=timedelta(minutes=1), reason="429")

        found = json.loads(rota("limits", "--json").output)

        assert [each["name"] for each in found] == ["imap:a", "polls", "imap:b", "imap:{host}"]
        busy, rate, closed, declared = found
        assert (busy["at_once"], busy["running"], busy["waiting"], busy["closed_until"]) == (1, 1, 1, None)
        assert (rate["most"], round(rate["tokens"]), rate["waiting"]) == (5, 4, 0)
        assert closed["closed_until"] is not None
        assert (closed["closed_reason"], declared["running"]) == ("429", 0)

    def test_they_are_printed_as_a_table(self, rota):
        first, busy, *_ = rota("limits").output.splitlines()

        assert first.startswith("limit\tsize\tat work\tmay start\twaiting\tclosed until")
        assert busy.split("\t")[:5] == ["imap:a", "1 at once", "1", "", "1"]

    @pytest.mark.parametrize("how", ["ROTA_REDACT", "Secret in another release"])
    def test_a_secret_argument_is_not_shown(self, rota, database, ledger, full, monkeypatch, how):
        with Session(database) as session, session.begin():
            close_limit(session, "imap:b", until=timedelta(minutes=1))
            close_limit(session, "imap:" + "c" * 400, until=timedelta(minutes=1))
        at = ledger.value("SELECT max(queued_at) FROM rota_runs").isoformat()
        run = str(full)
        commands = [("limits", "--json"), ("runs", run), ("runs", run, "--json"), ("why", "poll", "--at", at)]
        if how == "ROTA_REDACT":
            monkeypatch.setattr("core.observability.redaction.redacted", lambda: frozenset({"host"}))
        else:
            body = json.dumps({"poll": {"secrets": ["host"]}})
            ledger.do(
                "INSERT INTO rota_releases (fingerprint, jobs) VALUES ('before', CAST(:jobs AS jsonb))", jobs=body
            )

        for command in commands:
            output = rota(*command).output
            assert "imap:{host}" in output, command
            assert not re.search("imap:[abc]", output), output

    def test_a_secret_field_of_an_argument_is_not_shown(self, rota, database, monkeypatch):
        monkeypatch.setattr("core.observability.redaction.redacted", lambda: frozenset({"password"}))
        with Session(database) as session, session.begin():
            close_limit(session, 'imap:{"host": "b", "password": "pw"}', until=timedelta(minutes=1))

        output = rota("limits", "--json").output

        assert "pw" not in output
        assert "imap:a" in output

    def test_a_long_name_is_closed_as_it_is_stored(self, rota, database):
        with Session(database) as session, session.begin():
            close_limit(session, "imap:" + "c" * 400, until=timedelta(minutes=1))

        closed = {each["name"] for each in json.loads(rota("limits", "--json").output) if each["closed_until"]}

        assert closed == {Limit("imap:{host}", at_once=1).filled({"host": "c" * 400})}

    def test_the_metric_has_declared_names(self, database):
        seen = {}
        with pytest.MonkeyPatch.context() as patch, databases.autocommit(database) as connection:
            patch.setattr(metrics, "limited", seen.update)
            Watch(registry_of(poll)).look(connection, ())

        assert seen == {"imap:{host}": 1}


def test_without_limits_the_list_says_so(rota):
    assert rota("limits").output == "no job has a limit\n"


def test_one_run_names_the_limit_that_it_waits_for(rota, full):
    output = rota("runs", str(full)).output

    assert "queued (limit)" in output
    assert "the limit imap:a (1 at once; 1 at work)" in output
    assert "closed until" not in output


def test_one_run_says_until_when_its_limit_is_closed(rota, full, database):
    with Session(database) as session, session.begin():
        until = close_limit(session, "imap:a", until=timedelta(minutes=1), reason="429")

    found = json.loads(rota("runs", str(full), "--json").output)

    assert (found["limit"]["name"], found["limit"]["closed_reason"]) == ("imap:a", "429")
    assert datetime.fromisoformat(found["limit"]["closed_until"]) == until
    assert ": 429" in rota("runs", str(full)).output


def test_why_names_the_limit_and_until_when_it_is_closed(database, full):
    with Session(database) as session, session.begin():
        close_limit(session, "imap:a", until=timedelta(minutes=1), reason="429")
    with database.connect() as connection:
        asked_at = connection.exec_driver_sql("SELECT max(queued_at) FROM rota_runs").scalar_one()
        said = str(why.ask(connection, registry_of(poll), "poll", at=asked_at.isoformat()))

    assert "It waits for the limit imap:a (1 at once; 1 at work)." in said
    assert "The limit is closed until" in said
    assert ": 429." in said


def test_check_names_a_limit_with_different_numbers():
    @job("push", limits=[Limit("polls", most=6, per=timedelta(minutes=1))], schedule=every(hours=1))
    def push(run: Run) -> None:
        """Do nothing."""

    (found,) = health.contradicting_limits(registry_of(poll, push))

    assert (found.name, found.outcome) == ("limit polls", "info")
    assert "the jobs poll, push declare different numbers" in found.found
    assert list(health.contradicting_limits(registry_of(poll))) == []


@pytest.mark.usefixtures("full")
def test_check_names_a_limit_with_different_numbers_in_live_releases(database, start_process):
    @job("poll", limits=[Limit("imap:{host}", at_once=2), Limit("polls", most=5, per=timedelta(minutes=1))])
    def later(run: Run, host: str = "a") -> None:
        """Do nothing."""

    with database.connect() as connection:
        assert list(health.limits_of_releases(connection)) == []

        start_process(jobs=[later])

        (found,) = health.limits_of_releases(connection)
    assert (found.name, found.outcome) == ("limit imap:{host}", "info")
    assert "live releases have different numbers, 1 at once and 2 at once" in found.found


def test_old_rows_of_limits_are_deleted(database, ledger, full):
    ledger.do("INSERT INTO rota_closings (name, until) VALUES ('x', '2020-01-01')")
    ledger.do("UPDATE rota_limits SET used_at = '2020-01-01', full_at = '2020-01-01' WHERE name = 'polls'")
    ledger.do("UPDATE rota_runs SET state = 'dead', finished_at = now() WHERE state = 'running'")

    with Session(database) as session, session.begin():
        retention.prune_limits(session, checkpoint=lambda progress: None)

    assert ledger.rows("SELECT name FROM rota_closings") == []
    assert [row.name for row in ledger.rows("SELECT name FROM rota_limits")] == ["imap:a"]
    with database.connect() as connection:
        assert limit_use.waiting(connection) == {"imap:{host}": 1}
