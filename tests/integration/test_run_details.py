"""``rota runs``: lists runs by the same filter as ``rota retry``, and shows one run in full."""

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

from core import job
from core.cli import main
from core.ledger.listing import MOST_CHILDREN


@job("close-day", queue="billing", max_retries=1, retry_delay=timedelta(minutes=5))
def close_day(run, region: str = "uk"):
    if run.attempt == 1:
        raise RuntimeError("failed on purpose")
    run.enqueue("send-bill", key="42")


@job("send-bill", queue="mail", overlap="allow")
def send_bill(run):
    pass


@pytest.fixture(autouse=True)
def installed(use_jobs, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_jobs(close_day, send_bill)


@pytest.fixture
def rota():
    return lambda *words: CliRunner().invoke(main, words, catch_exceptions=False)


@pytest.fixture
def asked(rota):
    """Return the answer as JSON."""
    return lambda *words: json.loads(rota("runs", *words, "--json").stdout)


@pytest.fixture
def finished(run_job, ledger):
    """Make a run that fails, succeeds at its second attempt, and enqueues another run."""
    row = run_job(close_day, args={"region": "fr"}, key="7")
    ledger.do("UPDATE rota_runs SET due_at = clock_timestamp()")
    run_job.executor.execute(close_day, row.id)
    return run_job.row(row.id)


class TestOne:
    """One run in full."""

    def test_it_has_its_arguments_its_attempts_and_what_it_enqueued(self, asked, finished):
        found = asked(str(finished.id))

        assert (found["id"], found["state"], found["queue"], found["args"]) == (
            finished.id,
            "succeeded",
            "billing",
            {"region": "fr"},
        )
        failed, succeeded = found["attempts"]
        assert (failed["attempt"], failed["outcome"], failed["error"]) == (
            1,
            "failed",
            "RuntimeError: failed on purpose",
        )
        assert failed["traceback"].startswith("Traceback (most recent call last):")
        assert (succeeded["attempt"], succeeded["outcome"]) == (2, "succeeded")
        (child,) = found["enqueued"]
        assert (child["job"], child["key"], child["state"]) == ("send-bill", "42", "queued")
        assert found["enqueued_by"] is None

    def test_what_was_enqueued_says_by_which_run(self, asked, finished):
        (child,) = asked(str(finished.id))["enqueued"]

        found = asked(str(child["id"]))

        assert found["enqueued_by"] == {"id": finished.id, "job": "close-day", "key": "7", "state": "succeeded"}
        assert (found["attempts"], found["enqueued"]) == ([], [])

    def test_of_very_many_that_it_enqueued_it_has_the_newest(self, asked, ledger):
        run_id = ledger.request("close-day")
        children = [ledger.request("send-bill", parent_id=run_id) for _ in range(MOST_CHILDREN + 2)]

        found = asked(str(run_id))

        assert [child["id"] for child in found["enqueued"]] == children[:1:-1]
        assert found["has_enqueued_more"]

    def test_people_get_it_as_text(self, rota, finished):
        lines = rota("runs", str(finished.id)).stdout.split("\n")

        assert lines[0] == f"run {finished.id} of close-day: succeeded"
        told = [line.strip() for line in lines]
        assert 'arguments    {"region": "fr"}' in told
        assert told.count("RuntimeError: failed on purpose") == 1
        assert "failed       once" in told
        assert 'raise RuntimeError("failed on purpose")' in told
        assert any(line.startswith("attempt 1 failed (error) after") for line in lines)
        assert any(line.startswith("attempt 2 succeeded after") for line in lines)
        assert lines[-3] == "enqueued:"
        assert lines[-2].endswith("of send-bill, key 42: queued")

    def test_the_same_traceback_is_printed_once(self, rota, run_job, ledger):
        always = job("close-day", queue="billing", max_retries=5)(lambda run: [][1])
        row = run_job(always)
        for _ in range(2):
            ledger.do("UPDATE rota_runs SET due_at = clock_timestamp()")
            run_job.executor.execute(always, row.id)

        told = rota("runs", str(row.id)).stdout

        assert told.count("Traceback (most recent call last):") == 1
        assert told.count("The traceback is that of attempt 1.") == 2

    def test_a_cancellation_of_a_running_run_is_shown(self, rota, ledger):
        run_id = ledger.request("close-day", state="running", attempt=1, token=7, started_at="now")
        ledger.do(
            "INSERT INTO rota_cancels (run_id, token, asked_by, reason) VALUES (:id, 7, 'ann', 'wrong')", id=run_id
        )

        told = rota("runs", str(run_id)).stdout

        assert "cancelled    by ann, " in told
        assert ": wrong\n" in told

    def test_control_characters_are_escaped(self, rota, ledger):
        run_id = ledger.request("close-day", key="\x1b[2J", error="a\x1bb\nc", state="retrying", attempt=1)
        ledger.do(
            "INSERT INTO rota_attempts (run_id, attempt, outcome, error, traceback, log) "
            "VALUES (:id, 1, 'failed', :text, :text, :text)",
            id=run_id,
            text="x\x1b]52;y\nz",
        )

        assert "\x1b" not in rota("runs", str(run_id)).stdout

    def test_one_that_does_not_exist_is_refused(self, rota):
        result = rota("runs", "999")

        assert (result.exit_code, "run 999 does not exist" in result.stderr) == (1, True)

    @pytest.mark.parametrize("words", [("--job", "close-day"), ("--limit", "3"), ("--state", "dead")])
    def test_an_id_with_a_condition_is_wrong_usage(self, rota, words):
        assert rota("runs", "1", *words).exit_code == 2


class TestList:
    """Many runs by filter."""

    @pytest.fixture
    def ids(self, ledger):
        """Return the ids of runs of each kind, by the name of the kind."""
        failed = {"attempt": 2, "failures": 2, "error": "ValueError: no such thing"}
        over = {"finished_at": "now"}
        return {
            "waiting": ledger.request("close-day", queue="billing"),
            "sent": ledger.request("send-bill", queue="mail", sent_at="now"),
            "retrying": ledger.request("close-day", queue="billing", state="retrying", reason="error", **failed),
            "dead": ledger.request("close-day", queue="billing", state="dead", reason="retries", **failed, **over),
            "dropped": ledger.request("send-bill", queue="mail", state="dead", reason="dropped", **over),
            "skipped": ledger.request(
                "close-day", queue="billing", state="skipped", reason="overlap", slot="now", **over
            ),
            "missed": ledger.request("close-day", queue="billing", state="missed", reason="grace", **over),
            "old": ledger.request("send-bill", queue="mail", state="succeeded", finished_at="2020-01-01T00:00:00Z"),
            "new": ledger.request("send-bill", queue="mail", state="succeeded", **over),
        }

    @pytest.mark.parametrize(
        ("words", "names"),
        [
            ([], "new old missed skipped dropped dead retrying sent waiting"),
            (["--job", "send-bill"], "new old dropped sent"),
            (["--plugin", "tests", "--limit", "2"], "new old"),
            (["--queue", "mail"], "new old dropped sent"),
            (["--queue", "mail", "--job", "close-day"], ""),
            (["--state", "dead"], "dropped dead"),
            (["--state", "queued"], "sent waiting"),
            (["--state", "succeeded", "--job", "send-bill"], "new old"),
            (["--state", "missed"], "missed"),
            (["--state", "running"], ""),
            (["--reason", "overlap"], "skipped"),
            (["--reason", "dropped"], "dropped"),
            (["--reason", "dropped", "--state", "succeeded"], ""),
            (["--error", "NO SUCH"], "dead retrying"),
            (["--until", "2021-01-01T00:00"], "old"),
            (["--since", "1h", "--queue", "mail"], "new dropped sent"),
            (["--since", "1h", "--state", "dead"], "dropped dead"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_runs_are_listed_by(self, asked, ids, words, names):
        assert [run["id"] for run in asked(*words)] == [ids[name] for name in names.split()]

    def test_an_unknown_queue_is_refused_with_a_suggestion(self, rota):
        result = rota("runs", "--queue", "billling")

        assert (result.exit_code, "did you mean 'billing'" in result.stderr) == (1, True)

    def test_a_bad_time_is_wrong_usage(self, rota):
        assert rota("runs", "--since", "soon").exit_code == 2
