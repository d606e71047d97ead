"""``rota pause``, ``rota resume``, ``rota pauses``, and how other commands show a pause."""

import json
import re
from datetime import timedelta

import pytest
from click.testing import CliRunner

from core import database as databases
from core import every, job
from core.cli import actor, main
from core.ledger import releases
from core.testing import registry_of


@job("close-day", queue="billing", schedule=every(hours=1), misfire_grace=timedelta(days=40))
def close_day(run):
    """Close the day."""


@job("send-bill", queue="billing")
def send_bill(run, to: str = ""):
    """Send a bill."""


@job("fast", queue="billing", ledger=False)
def fast(run):
    """On the fast lane."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_jobs(close_day, send_bill, fast)


@pytest.fixture
def rota():
    return lambda *words, **options: CliRunner().invoke(main, words, catch_exceptions=False, **options)


@pytest.fixture
def listed(rota):
    return lambda: json.loads(rota("pauses", "--json").stdout)


class TestPause:
    @pytest.mark.parametrize(
        ("words", "scope"),
        [
            (["close-day"], "job:close-day"),
            (["--queue", "billing"], "queue:billing"),
            (["--plugin", "tests"], "plugin:tests"),
            (["--everything"], "everything"),
        ],
    )
    def test_each_scope_is_paused_listed_and_resumed(self, rota, listed, words, scope):
        done = rota("pause", *words, "--reason", "the bank is down", "--by", "ann")

        assert (done.exit_code, done.stdout) == (0, f"paused {scope} until it is resumed\n")
        (pause,) = listed()
        assert (pause["scope"], pause["paused_by"], pause["reason"], pause["until"]) == (
            scope, "ann", "the bank is down", None,
        )  # fmt: skip
        assert "the bank is down" in rota("pauses").stdout
        assert rota("resume", *words).stdout == f"resumed {scope}\n"
        assert rota("pauses").stdout == "nothing is paused\n"

    def test_who_is_by_default_the_user_who_is_logged_in(self, rota, listed, monkeypatch):
        monkeypatch.setenv("LOGNAME", "ann")
        rota("pause", "close-day")
        assert re.fullmatch(r"ann@\S+", listed()[0]["paused_by"])

        def nobody():
            raise KeyError("uid not found")

        monkeypatch.setattr(actor.getpass, "getuser", nobody)
        assert re.fullmatch(r"uid \d+@\S+", actor.login())

    def test_it_may_be_for_a_while(self, rota, listed, ledger):
        assert rota("pause", "close-day", "--for", "1h30m").exit_code == 0
        assert rota("pause", "send-bill", "--until", "2199-01-01T03:00:00+00:00").exit_code == 0

        (span,) = ledger.rows("SELECT until - paused_at AS span FROM rota_pauses WHERE scope = 'job:close-day'")
        assert abs(span.span - timedelta(minutes=90)) < timedelta(seconds=5)
        assert listed()[1]["until"].startswith("2199-01-01T03:00:00")

    def test_a_time_of_day_is_the_next_of_that_name(self, rota, ledger):
        now = ledger.value("SELECT clock_timestamp()").astimezone()
        before, after = (now + timedelta(minutes=minutes) for minutes in (-5, 5))

        rota("pause", "close-day", "--until", f"{before:%H:%M:%S}")
        rota("pause", "send-bill", "--until", f"{after:%H:%M:%S}")

        spans = [row.span for row in ledger.rows("SELECT until - paused_at AS span FROM rota_pauses ORDER BY id")]
        assert timedelta(hours=22) < spans[0] < timedelta(hours=26)  # clocks may change in the next night
        assert spans[1] <= timedelta(minutes=5)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "name one of a JOB, --queue, --plugin and --everything"),
            (["close-day", "--queue", "billing"], "not job:close-day and queue:billing"),
            (["--everything", "--plugin", "tests"], "not plugin:tests and everything"),
            (["close-day", "--for", "1h", "--until", "18:00"], "--for and --until contradict each other"),
            (["close-day", "--until", "2020-01-01T00:00"], "is not a valid time; expected 18:00 or"),
            (["close-day", "--until", "soon"], "'soon' is not a valid time"),
            (["close-day", "--for", "0s"], "'0s' is not a span of time"),
            (["close-day", "--for", "-2h"], "'-2h' is not a span of time"),
            (["close-day", "--for", "2"], "expected a span such as 30m, 2h or 1d12h"),
            (["close-day", "--for", "9999999d"], "after the last date that there is"),
            (["close-day", "--for", "99999999999999999999w"], "is not a span of time"),
            (["close-day", "--by", " "], "expected a name of 1 to 200 printable characters"),
        ],
    )
    def test_what_makes_no_sense_is_wrong_usage(self, rota, listed, words, said):
        done = rota("pause", *words)

        assert done.exit_code == 2
        assert said in " ".join(done.stderr.split())
        assert listed() == []

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["close-dya"], "unknown job 'close-dya'; did you mean 'close-day'?"),
            (["--queue", "biling"], "unknown queue 'biling'; did you mean 'billing'?"),
            (["--plugin", "test"], "unknown plugin 'test'; did you mean 'tests'?"),
            (["--plugin", "xyz"], "unknown plugin 'xyz'; see `rota jobs`"),
            (["fast"], "job 'fast' is on the fast lane (ledger=False)"),
        ],
    )
    def test_what_cannot_be_paused_is_refused(self, rota, listed, words, said):
        done = rota("pause", *words)

        assert done.exit_code == 1
        assert done.stderr.startswith(f"rota: {said}")
        assert listed() == []

    def test_jobs_of_the_fast_lane_are_told_apart(self, rota):
        done = rota("pause", "--queue", "billing")

        assert done.exit_code == 0
        assert "not paused, since they are on the fast lane (ledger=False): fast" in done.stderr

    def test_a_job_that_only_a_live_process_has_can_be_paused(self, rota, start_process):
        foreign = job("foreign", queue="elsewhere")(lambda run: None)
        start_process(jobs=[foreign], plugin="theirs")

        for words in (["foreign"], ["--queue", "elsewhere"], ["--plugin", "theirs"]):
            assert rota("pause", *words).exit_code == 0

    def test_pausing_twice_is_refused_and_says_who_did(self, rota, listed):
        rota("pause", "close-day", "--by", "ann")

        done = rota("pause", "close-day", "--by", "bob")

        assert (done.exit_code, len(listed())) == (1, 1)
        assert done.stderr == "rota: job:close-day is paused already, by ann; resume it first\n"


class TestResume:
    @pytest.mark.parametrize("words", [[], ["close-day", "--everything"]])
    def test_one_scope_has_to_be_named(self, rota, words):
        assert rota("resume", *words).exit_code == 2

    def test_what_is_not_paused_is_refused(self, rota):
        done = rota("resume", "close-day")

        assert done.exit_code == 1
        assert done.stderr == "rota: job:close-day is not paused; `rota pauses` lists the pauses\n"

    def test_a_job_whose_queue_is_paused_says_so(self, rota, listed):
        rota("pause", "--queue", "billing")

        done = rota("resume", "close-day")

        assert done.exit_code == 1
        assert "the pause of queue:billing covers it: `rota resume --queue billing` ends that pause" in done.stderr
        assert len(listed()) == 1

    def test_everything_that_is_not_paused_as_such_says_what_is(self, rota):
        rota("pause", "--queue", "billing")

        assert "the active pauses are of queue:billing" in rota("resume", "--everything").stderr

    def test_what_another_pause_still_holds_is_told(self, rota):
        rota("pause", "--everything")
        rota("pause", "close-day")

        assert "still paused by the pause of everything" in rota("resume", "close-day").stderr

    def test_what_is_gone_from_the_registry_can_still_be_resumed(self, rota, use_jobs):
        rota("pause", "close-day")
        use_jobs(send_bill)

        assert rota("resume", "close-day").exit_code == 0


class TestOtherCommands:
    """Other commands show ``paused by ann since … until …: the bank is down``."""

    @pytest.fixture(autouse=True)
    def paused(self, rota):
        rota("pause", "--queue", "billing", "--by", "ann", "--reason", "the bank is down", "--for", "2h")

    SAID = re.compile(r"paused \(queue:billing\) by ann since \S+ \S+( \S+)? until \S+ \S+( \S+)?: the bank is down")

    def test_jobs(self, rota):
        lines = rota("jobs").stdout.splitlines()
        assert [bool(self.SAID.search(line)) for line in lines[1:]] == [True, False, True]

        found = {each["name"]: each["pauses"] for each in json.loads(rota("jobs", "--json").stdout)}
        assert [pause["scope"] for pause in found["close-day"]] == ["queue:billing"]
        assert found["fast"] == []

    def test_jobs_go_on_where_the_ledger_cannot_be_asked(self, rota, monkeypatch):
        monkeypatch.setenv("DATABASE_URL", "postgresql://rota:hunter2@127.0.0.1:1/rota")

        done = rota("jobs", "--json")

        assert done.exit_code == 0
        assert {each["name"]: each["pauses"] for each in json.loads(done.stdout)}["close-day"] is None
        assert "the pauses are not known: PostgreSQL cannot be reached" in done.stderr
        assert "hunter2" not in done.output

    def test_runs(self, rota, ledger):
        ledger.request("send-bill", queue="billing")
        ledger.request("send-bill", queue="billing", state="dead", finished_at="now")

        dead, waiting = rota("runs").stdout.splitlines()[1:3]

        assert self.SAID.search(waiting)
        assert not self.SAID.search(dead)

    def test_check(self, rota):
        assert re.search(rf"--  pause of queue:billing: {self.SAID.pattern}", rota("check").stdout)

    def test_run_says_that_it_waits(self, rota, ledger):
        done = rota("run", "send-bill")

        assert done.exit_code == 0
        assert self.SAID.search(done.stderr)
        assert "the run waits for the end of that pause" in done.stderr
        assert ledger.run(int(done.stdout)).state == "queued"

    def test_why_says_what_a_waiting_run_waits_for(self, rota, ledger):
        at = ledger.run(ledger.request("send-bill", queue="billing")).queued_at

        assert self.SAID.search(rota("why", "send-bill", "--at", at.isoformat()).stdout)

    def test_why_names_the_pause_in_which_a_slot_was_skipped_even_when_it_is_over(self, rota, ledger):
        slot = ledger.value("SELECT date_trunc('hour', clock_timestamp() - interval '1 day')")
        ledger.do(
            "UPDATE rota_pauses SET paused_at = CAST(:slot AS timestamptz) - interval '1 minute', "
            "until = CAST(:slot AS timestamptz) + interval '1 minute'",
            slot=slot,
        )
        ledger.request("close-day", slot=slot, state="skipped", reason="paused", finished_at=slot)

        told = rota("why", "close-day", "--at", slot.isoformat()).stdout

        assert "was skipped: its job was paused" in told
        assert self.SAID.search(told)


class TestContradiction:
    def test_a_grace_longer_than_runs_are_kept_is_wrong_and_names_both(self, rota, monkeypatch):
        done = rota("check")

        assert done.exit_code == 1
        assert (
            "no  job close-day: misfire_grace=40 days, 0:00:00 is longer than ROTA_RETENTION_DAYS (30)" in done.stdout
        )

        monkeypatch.setenv("ROTA_RETENTION_DAYS", "40")
        assert "close-day: misfire_grace" not in rota("check").stdout


def test_a_release_of_the_past_does_not_make_its_names_known(rota, database):
    former = job("former", queue="former")(lambda run: None)
    with databases.autocommit(database) as connection:
        releases.record(connection, releases.of(registry_of(former, plugin="former")))

    assert rota("pause", "former").exit_code == 1
