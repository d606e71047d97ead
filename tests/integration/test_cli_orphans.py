"""``rota orphans`` and ``rota diff``, with a real ledger."""

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from core import Limit, every, job
from core import database as databases
from core.cli import confirmation, main
from core.ledger import releases
from core.testing import registry_of


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run):
    pass


@job("close-day", queue="books", schedule=every(hours=2), max_retries=7)
def close_day_as_it_was(run):
    pass


@job("open-day")
def open_day(run):
    pass


@job("retired")
def retired(run):
    pass


class Shelf(BaseModel):
    books: int


ShelfAsItWas = Shelf


class Shelf(BaseModel):
    books: str


@job("moved", ledger=False)
def moved_as_it_was(run, day: str, region: str, shelf: ShelfAsItWas, times: int = 1):
    pass


@job("moved")
def moved(run, day: int, shelf: Shelf, place: str = "uk", times: int = 2):
    pass


@pytest.fixture(autouse=True)
def installed(use_jobs, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_jobs(close_day, open_day)


@pytest.fixture
def rota():
    return lambda *words, **options: CliRunner().invoke(main, words, catch_exceptions=False, **options)


@pytest.fixture
def ran(database):
    """Record these jobs as a release of a plugin."""

    def record(*jobs, plugin="tests"):
        with databases.autocommit(database) as connection:
            releases.record(connection, releases.of(registry_of(*jobs, plugin=plugin)))

    return record


@pytest.fixture
def orphan(ledger):
    return lambda job="close-day", was="queued": ledger.request(
        job, state="orphaned", reason="uninstalled", former_state=was, finished_at="now"
    )


class TestOrphans:
    def test_they_are_counted_by_job_and_by_what_they_were(self, rota, orphan):
        orphan(), orphan(), orphan(was="dead"), orphan("retired")

        found = json.loads(rota("orphans", "--json").stdout)

        counts = [(c["job"], c["was"], c["reason"], c["runs"]) for c in found["counts"]]
        assert counts == [
            ("close-day", "dead", "uninstalled", 1),
            ("close-day", "queued", "uninstalled", 2),
            ("retired", "queued", "uninstalled", 1),
        ]
        assert len(found["runs"]) == 4
        assert len(rota("orphans").stdout.splitlines()) == 4

    def test_they_can_be_asked_for_by_job_and_by_the_plugin_that_had_them(self, rota, orphan, ran):
        ran(retired, plugin="history")
        ran(close_day)
        orphan(), orphan("retired")

        def jobs(*options):
            return [count["job"] for count in json.loads(rota("orphans", "--json", *options).stdout)["counts"]]

        assert jobs("--job", "close-day") == ["close-day"]
        assert jobs("--plugin", "history") == ["retired"]
        assert jobs("--plugin", "history", "--job", "close-day") == []
        assert rota("orphans", "--job", "open-day").stdout == "no orphans match\n"

    @pytest.mark.parametrize("words", [[], ["--json"]])
    def test_a_job_that_nobody_ever_had_is_refused(self, rota, words):
        done = rota("orphans", "--job", "close-dya", *words)

        assert (done.exit_code, done.stdout) == (1, "")
        assert "unknown job 'close-dya'; did you mean 'close-day'?" in done.stderr

    def test_why_says_that_it_was_orphaned_and_what_to_do(self, rota, orphan, ledger):
        at = ledger.run(orphan()).queued_at

        told = rota("why", "close-day", "--at", at.isoformat()).stdout

        assert "no live process had its job, since its plugin was uninstalled. Before that it was queued" in told
        assert "rota orphans adopt close-day" in told


class TestAdopt:
    def test_what_waited_waits_again_and_what_was_dead_is_dead_again(self, rota, orphan, ledger):
        waiting, dead = orphan(), orphan(was="dead")

        done = rota("orphans", "adopt", "close-day", "--yes")

        assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "adopted 2")
        assert [ledger.run(run_id).state for run_id in (waiting, dead)] == ["queued", "dead"]
        assert rota("orphans", "adopt", "close-day", "--yes").stdout == "no orphans\n"

    def test_a_plugins_jobs_are_adopted_together(self, rota, orphan, ledger):
        orphan(), orphan("open-day"), orphan("retired")

        assert rota("orphans", "adopt", "--plugin", "tests", "--yes").exit_code == 0

        assert ledger.states("close-day") + ledger.states("open-day") == ["queued", "queued"]
        assert ledger.states("retired") == ["orphaned"]

    def test_where_nobody_can_answer_it_is_refused_and_changes_nothing(self, rota, orphan, ledger):
        orphan()

        done = rota("orphans", "adopt", "close-day")

        assert done.exit_code == 1
        assert "There is no terminal to answer on; use --yes" in done.stderr
        assert ledger.states("close-day") == ["orphaned"]

    @pytest.mark.parametrize(
        ("answer", "state", "status"), [("y", "queued", 0), ("n", "orphaned", 1), ("", "orphaned", 1)]
    )
    def test_a_person_is_asked(self, rota, orphan, ledger, monkeypatch, answer, state, status):
        monkeypatch.setattr(confirmation, "is_answerable", lambda: True)
        orphan()

        assert rota("orphans", "adopt", "close-day", input=f"{answer}\n").exit_code == status
        assert ledger.states("close-day") == [state]

    def test_a_job_that_is_not_known_here_is_refused(self, rota, orphan, ledger):
        orphan("retired")

        assert "unknown job 'retired'" in rota("orphans", "adopt", "retired", "--yes").stderr
        assert "plugin 'test' is not loaded here; did you mean 'tests'?" in (
            rota("orphans", "adopt", "--plugin", "test", "--yes").stderr
        )
        assert ledger.states("retired") == ["orphaned"]

    def test_a_job_that_no_live_process_has_is_refused(self, rota, orphan, ledger, start_process):
        start_process(jobs=[open_day])
        orphan()

        done = rota("orphans", "adopt", "close-day", "--yes")

        assert done.exit_code == 1
        assert "no live process has close-day" in done.stderr
        assert ledger.states("close-day") == ["orphaned"]

    @pytest.mark.parametrize("words", [[], ["close-day", "--plugin", "tests"]])
    def test_a_job_or_a_plugin_has_to_be_named(self, rota, words):
        assert rota("orphans", "adopt", *words).exit_code == 2


class TestDiff:
    def diff(self, rota):
        done = rota("diff", "--json")
        return done.exit_code, json.loads(done.stdout)

    def test_a_database_on_which_nothing_ran_has_no_difference(self, rota):
        status, found = self.diff(rota)

        assert (status, found["is_first"]) == (0, True)
        assert rota("diff").stdout == "no release has run here yet\n"

    def test_the_same_jobs_are_no_difference(self, rota, ran):
        ran(close_day, open_day)

        assert (rota("diff").exit_code, rota("diff").stdout) == (0, "nothing changed\n")

    def test_an_added_job_does_no_harm(self, rota, ran):
        ran(close_day)

        assert (rota("diff").exit_code, rota("diff").stdout) == (0, "+ open-day\n")

    def test_a_changed_job_is_told_field_by_field(self, rota, ran):
        ran(close_day_as_it_was, open_day)

        status, found = self.diff(rota)

        assert status == 0
        assert found["changed"] == {
            "close-day": {
                "max_retries": [7, 3],
                "queue": ["books", "billing"],
                "schedule": ["every 2h", "every 1h"],
            }
        }
        assert "    max_retries: 7 → 3" in rota("diff").stdout.splitlines()

    def test_a_removed_job_and_what_waits_for_it_say_no(self, rota, ran, ledger):
        ran(close_day, open_day, retired)
        ledger.request("retired"), ledger.request("retired", state="dead", finished_at="now")

        status, found = self.diff(rota)

        assert status == 1
        assert found["removed"] == ["retired"]
        assert found["left_behind"] == {"retired": {"dead": 1, "queued": 1}}
        assert "! retired: 1 dead, 1 queued, but the job is not installed here" in rota("diff").stdout

    def test_what_waits_for_a_job_that_no_release_had_says_no(self, rota, ran, ledger):
        ran(close_day, open_day)
        ledger.request("forgotten")
        ledger.request("over", state="orphaned", finished_at="now")

        status, found = self.diff(rota)

        assert (status, found["removed"], found["left_behind"]) == (1, [], {"forgotten": {"queued": 1}})

    def test_a_changed_argument_is_told_as_it_was_and_as_it_is(self, rota, ran, use_jobs):
        ran(moved_as_it_was)
        use_jobs(moved)

        status, found = self.diff(rota)

        assert (status, found["changed"]) == (
            0,
            {
                "moved": {
                    "argument day": ["str", "int"],
                    "argument place": [None, "str = 'uk'"],
                    "argument region": ["str", None],
                    "argument shelf": ["Shelf", "Shelf, with other contents"],
                    "argument times": ["int = 1", "int = 2"],
                    "ledger": [False, True],
                }
            },
        )
        assert "    argument place: none → str = 'uk'" in rota("diff").stdout.splitlines()

    def test_a_changed_limit_is_told_as_it_was_and_as_it_is(self, rota, ran, use_jobs):
        def poll(*limits):
            return job("poll", limits=[*limits])(lambda run: None)

        minute = timedelta(minutes=1)
        ran(poll(Limit("smtp", at_once=2), Limit("same", at_once=1), Limit("gone", at_once=3)))
        use_jobs(poll(Limit("smtp", at_once=4), Limit("same", at_once=1), Limit("polls", most=5, per=minute)))

        status, found = self.diff(rota)

        assert status == 0
        assert found["changed"]["poll"] == {
            "limit gone": ["3 at once", None],
            "limit polls": [None, "5 per 60 s"],
            "limit smtp": ["2 at once", "4 at once"],
        }
        assert "    limit polls: none → 5 per 60 s" in rota("diff").stdout.splitlines()

    def test_what_an_older_version_did_not_keep_has_not_changed(self, rota, ran, ledger):
        ran(close_day, open_day)
        ledger.do("UPDATE rota_releases SET jobs = jobs #- '{open-day,arguments}' #- '{open-day,form}'")
        ledger.do("UPDATE rota_releases SET jobs = jobs #- '{close-day,ledger}'")

        assert self.diff(rota)[1]["changed"] == {}

    def test_runs_that_wait_in_a_form_that_does_not_fit_say_no(self, rota, ran, ledger, use_jobs):
        ran(moved_as_it_was)
        use_jobs(moved)
        fitting = '{"day": 1, "shelf": {"books": "two"}}'
        for args, columns in [(fitting, {}), ("{}", {}), ('{"day": "1"}', {"state": "retrying", "sent_at": "now"})]:
            ledger.request("moved", args=args, **columns)
        ledger.request("moved", args="{}", state="dead", finished_at="now")

        status, found = self.diff(rota)

        assert (status, found["misfits"]) == (1, {"moved": 2})
        assert (
            "! moved: 2 runs wait with arguments that do not fit here; let workers of the old release finish them"
            in rota("diff").stdout.splitlines()
        )
