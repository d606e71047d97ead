"""``rota retry`` and ``rota drop``: select runs by id or by filter, show them, ask, work at a steady rate, and stop at
Ctrl-C.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from core import every, job
from core.cli import bulk as shown
from core.cli import confirmation, main
from core.operations import bulk
from tests.support.eventually import eventually


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk"):
    pass


@job("send-bill", queue="mail")
def send_bill(run):
    pass


@pytest.fixture(autouse=True)
def installed(use_jobs, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_jobs(close_day, send_bill)


@pytest.fixture
def rota():
    return lambda *words, **options: CliRunner().invoke(main, words, catch_exceptions=False, **options)


@pytest.fixture
def dead(ledger):
    def dead(job="close-day", **columns):
        spent = {"attempt": 4, "failures": 4, "reason": "retries", "error": "ValueError: no", "queue": "billing"}
        return ledger.request(job, state="dead", finished_at="now", **{**spent, **columns})

    return dead


@pytest.fixture
def many(ledger):
    """Return many dead runs."""

    def many(count):
        ledger.do(
            "INSERT INTO rota_runs (job, queue, state, reason, attempt, finished_at) "
            "SELECT 'send-bill', 'mail', 'dead', 'retries', 4, clock_timestamp() FROM generate_series(1, :count)",
            count=count,
        )

    return many


class TestIds:
    def test_one_is_retried(self, rota, dead, ledger):
        run_id = dead()

        done = rota("retry", str(run_id), "--yes")

        assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "retried 1 run")
        assert ledger.run(run_id).state == "retrying"

    def test_what_cannot_be_retried_is_all_named_and_nothing_changes(self, rota, dead, ledger):
        fit, alive, gone = dead(), ledger.request("close-day", state="running"), dead(job="close-day")
        orphan = ledger.request("close-day", state="orphaned", finished_at="now")
        ledger.do("DELETE FROM rota_runs WHERE id = :id", id=gone)

        done = rota("retry", str(fit), str(alive), str(gone), str(orphan), "--yes")

        assert done.exit_code == 1
        assert done.stderr == (
            f"rota: run {gone} does not exist; "
            f"run {alive} has the state running, not dead (a worker is working on it); "
            f"run {orphan} has the state orphaned, not dead (`rota orphans adopt close-day` adopts it); "
            "nothing was changed\n"
        )
        assert ledger.run(fit).state == "dead"

    def test_what_was_dropped_is_not_dropped_again(self, rota, dead):
        run_id = dead()
        rota("drop", str(run_id), "--yes")

        done = rota("drop", str(run_id), "--yes")

        assert (done.exit_code, done.stderr) == (
            1, f"rota: run {run_id} was dropped already; nothing was changed\n",
        )  # fmt: skip

    @pytest.mark.parametrize("command", ["retry", "drop"])
    @pytest.mark.parametrize(
        "words",
        [[], ["1", "--job", "close-day"], ["1", "--limit", "3"], ["--limit", "3"], ["x"], ["0"], ["--rate", "0"]],
    )
    def test_wrong_usage(self, rota, command, words):
        assert rota(command, *words).exit_code == 2

    def test_a_job_that_is_not_loaded_is_refused(self, rota, dead, ledger):
        run_id = dead("retired")

        assert "unknown job 'retired'" in rota("retry", str(run_id), "--yes").stderr
        assert ledger.run(run_id).state == "dead"

    def test_a_job_that_no_live_process_has_is_refused(self, rota, dead, start_process):
        start_process(jobs=[send_bill])

        done = rota("retry", str(dead()), "--yes")

        assert (done.exit_code, "no live process has close-day" in done.stderr) == (1, True)


class TestFilters:
    def test_a_dry_run_shows_and_changes_nothing(self, rota, dead, ledger):
        dead(), dead(reason="crashes", error="worker died")

        done = rota("retry", "--job", "close-day", "--dry-run")

        assert done.exit_code == 0
        assert "close-day: 1 dead (crashes)" in done.stdout
        assert "close-day: 1 dead (retries)" in done.stdout
        assert done.stdout.splitlines()[-1] == "would retry 2 runs; nothing was changed"
        assert set(ledger.states("close-day")) == {"dead"}
        assert ledger.rows("SELECT * FROM rota_audit") == []

    @pytest.mark.parametrize(
        ("words", "left"),
        [
            (["--job", "close-day"], ["send-bill"]),
            (["--queue", "mail"], ["close-day"]),
            (["--plugin", "tests"], []),
            (["--plugin", "tests", "--job", "send-bill"], ["close-day"]),
            (["--reason", "crashes"], ["close-day"]),
            (["--error", "VALUEERROR"], ["send-bill"]),
            (["--since", "1h", "--until", "23:59:59"], []),
            (["--since", "1h"], []),
        ],
    )
    def test_what_matches_is_retried(self, rota, dead, ledger, words, left):
        dead(), dead("send-bill", queue="mail", reason="crashes", error="worker died")
        if "--until" in words:
            words = ["--since", "1h", "--until", ledger.value("SELECT clock_timestamp()").isoformat()]

        assert rota("retry", *words, "--yes").exit_code == 0

        assert [row.job for row in ledger.rows("SELECT job FROM rota_runs WHERE state = 'dead' ORDER BY job")] == left

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--job", "close-day"], "no run that is dead matches"),
            (["--until", "1h"], "no run that is dead matches"),
            (["--job", "close-dya"], "unknown job 'close-dya'; did you mean 'close-day'?"),
            (["--queue", "mial"], "unknown queue 'mial'; did you mean 'mail'?"),
            (["--plugin", "test"], "unknown plugin 'test'; did you mean 'tests'?"),
        ],
    )
    def test_what_matches_nothing_says_so(self, rota, dead, words, said):
        dead("send-bill")

        done = rota("retry", *words, "--yes")

        assert (done.exit_code, done.stderr.startswith(f"rota: {said}")) == (1, True)

    @pytest.mark.parametrize("bad", ["soon", "2199-01-01", "25:00", "-1h"])
    def test_what_is_no_time_of_the_past_is_wrong_usage(self, rota, bad):
        assert rota("retry", "--since", bad).exit_code == 2

    def test_the_oldest_go_first_up_to_the_limit(self, rota, dead, ledger):
        first, second = dead(), dead()

        assert rota("retry", "--job", "close-day", "--limit", "1", "--yes").exit_code == 0

        assert [ledger.run(run_id).state for run_id in (first, second)] == ["retrying", "dead"]

    def test_dropping_takes_what_waits_and_what_is_dead_and_a_state_narrows_it(self, rota, dead, ledger):
        dead(), ledger.request("close-day"), ledger.request("close-day", state="retrying")
        ledger.request("close-day", state="running", key="k")

        assert rota("drop", "--job", "close-day", "--state", "queued", "--yes").stdout.endswith("dropped 1 run\n")
        assert rota("drop", "--job", "close-day", "--yes").stdout.endswith("dropped 2 runs\n")
        assert "no run that is queued or retrying or dead matches" in rota("drop", "--job", "close-day").stderr
        assert sorted(ledger.states("close-day")) == ["dead", "dead", "dead", "running"]

    def test_json(self, rota, dead):
        run_id = dead()

        dry = json.loads(rota("retry", "--job", "close-day", "--dry-run", "--json").stdout)
        done = json.loads(rota("retry", "--job", "close-day", "--yes", "--json").stdout)

        assert (dry["matched"], dry["retried"], dry["runs"][0]["state"]) == (1, 0, "dead")
        assert (done["matched"], done["retried"]) == (1, 1)
        assert (done["runs"][0]["id"], done["runs"][0]["state"]) == (run_id, "retrying")


class TestConfirmation:
    def test_where_nobody_can_answer_it_is_refused_and_changes_nothing(self, rota, dead, ledger):
        done = rota("retry", str(dead()))

        assert (done.exit_code, "use --yes" in done.stderr) == (1, True)
        assert ledger.states("close-day") == ["dead"]

    @pytest.mark.parametrize(("answer", "state", "status"), [("y", "retrying", 0), ("n", "dead", 1)])
    def test_a_person_is_asked(self, rota, dead, ledger, monkeypatch, answer, state, status):
        monkeypatch.setattr(confirmation, "is_answerable", lambda: True)

        assert rota("retry", str(dead()), input=f"{answer}\n").exit_code == status
        assert ledger.states("close-day") == [state]

    def test_what_has_changed_since_it_was_shown_is_not_done_twice(self, rota, dead, ledger, monkeypatch):
        """Two people retry the same runs, and one of them confirms later."""
        run_id = dead()

        def meanwhile(_question, *, is_given):
            if not is_given:
                assert rota("retry", str(run_id), "--yes").exit_code == 0

        monkeypatch.setattr(shown, "confirm", meanwhile)
        done = rota("retry", str(run_id))

        assert done.exit_code == 1
        assert "1 of them had changed since they were selected" in done.stderr
        assert ledger.value("SELECT count(*) FROM rota_audit") == 1


class TestBulk:
    def test_it_goes_batch_by_batch_with_one_entry_in_the_audit(self, rota, many, ledger):
        many(bulk.BATCH * 2 + 7)

        done = rota("retry", "--job", "send-bill", "--yes", "--by", "ann")

        assert done.stdout.endswith(f"retried {bulk.BATCH * 2 + 7} runs\n")
        (entry,) = ledger.rows("SELECT * FROM rota_audit")
        assert (entry.actor, entry.via, entry.action, entry.target) == ("ann", "cli", "retry", "send-bill")
        assert entry.details == {"runs": bulk.BATCH * 2 + 7, "job": "send-bill"}

    def test_a_rate_is_kept_on_average(self, rota, many, ledger):
        many(13)

        assert rota("retry", "--job", "send-bill", "--rate", "10", "--yes").exit_code == 0

        times = ledger.rows("SELECT DISTINCT retried_at AS at FROM rota_runs ORDER BY 1")
        assert (times[-1].at - times[0].at).total_seconds() >= 0.9

    def test_ctrl_c_leaves_a_consistent_state_and_says_how_many(self, many, ledger):
        """The real command runs in a process of its own."""
        many(100)
        program = (
            "from core import job; from core.plugins import loading\n"
            "from core.testing import registry_of; from core.cli import main\n"
            "bill = job('send-bill', queue='mail')(lambda run: None)\n"
            "with loading.using(registry_of(bill)): main(prog_name='rota')"
        )
        words = ["retry", "--job", "send-bill", "--yes", "--rate", "20"]
        command = subprocess.Popen(
            [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
        )  # fmt: skip
        eventually(lambda: ledger.value("SELECT count(*) FROM rota_runs WHERE state = 'retrying'") >= 20, within=30)
        command.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, errors = command.communicate(timeout=30)

        done = ledger.value("SELECT count(*) FROM rota_runs WHERE state = 'retrying'")
        assert (command.returncode, time.monotonic() - began < 10) == (1, True)
        assert errors.splitlines()[-1] == f"rota: stopped: retried {done} of 100; the others are unchanged"
        assert 20 <= done < 100
        assert ledger.value("SELECT details ->> 'runs' FROM rota_audit") == str(done)


class TestWhy:
    def ask(self, rota, ledger, run_id):
        return rota("why", "close-day", "--at", ledger.run(run_id).queued_at.isoformat()).stdout

    def test_a_retried_run_says_what_it_was(self, rota, dead, ledger):
        run_id = dead()
        rota("retry", str(run_id), "--yes")

        told = self.ask(rota, ledger, run_id)

        assert "it was dead, and a person has retried it" in told
        assert "after 4 attempts; `rota audit` shows who did it" in told

    def test_its_later_failures_are_told_apart_from_its_earlier_ones(self, rota, dead, ledger):
        run_id = dead(attempt=7, failures=3, retried_at="2026-01-01T03:00:00Z", retried_after=4)

        assert "Since a person retried it, it has had 3 attempts: 3 ended in an error" in (
            self.ask(rota, ledger, run_id)
        )

    def test_a_dropped_run_says_what_it_was(self, rota, ledger):
        run_id = ledger.request("close-day")
        rota("drop", str(run_id), "--yes")

        assert "has been dead since" in self.ask(rota, ledger, run_id)
        assert "a person has dropped it; its state before was queued" in self.ask(rota, ledger, run_id)
