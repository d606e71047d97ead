"""Changes that a run leaves in its process end with the run, are undone, or are logged."""

import pytest

from tests.support.emitted import logged
from tests.support.eventually import eventually
from tests.support.forks import Asking, install

pytestmark = pytest.mark.crash


@pytest.fixture
def fleet(make_fleet):
    """Return a fleet with a worker whose jobs leave changes behind."""
    fleet = make_fleet(jobs="wait,touch", environ={"LC_ALL": "C.UTF-8"})
    install(fleet.folder / "site", "untidy")
    return fleet


@pytest.fixture
def asking(fleet):
    """Return a function that requests runs of that fleet."""
    fleet.worker(threads=1)
    return Asking(fleet)


def said(fleet, event):
    """Return what lines of that event contain: the jobs, and the state that they have changed."""
    return [(line["jobs"], line["what"]) for line in logged(fleet.logs(), event)]


def test_context_variables_of_a_run_are_gone_with_it(asking):
    before = asking.run("look", what="context").result
    assert asking.run("change", what="context").state == "succeeded"

    assert asking.run("look", what="context").result == before == ["nobody", {}, 28]


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("folder", "working directory"),
        ("umask", "umask"),
        ("locale", "locale"),
        ("timeout", "default socket timeout"),
        ("gc", "garbage collector"),
        ("stdout", "sys.stdout"),
        ("stderr", "sys.stderr"),
        ("logging", "logging"),
    ],
)
def test_what_a_run_has_changed_for_its_process_is_put_back_and_said_once(fleet, asking, what, name):
    before = asking.run("look", what=what).result
    for _ in range(2):
        assert asking.run("change", what=what).state == "succeeded"
        if what == "umask":  # checked once a second
            eventually(lambda: asking.run("look", what=what).result == before)

        assert asking.run("look", what=what).result == before
    eventually(lambda: said(fleet, "process.state_put_back"))
    assert said(fleet, "process.state_put_back") == [("a job" if what == "umask" else "change", name)]


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("environ", "environment variables UNTIDY"),
        ("path", "sys.path"),
        ("warnings", "warnings filters"),
        ("thread", "threads left-alive-N"),
    ],
)
def test_what_may_be_a_librarys_stays_and_is_said(fleet, asking, what, name):
    for _ in range(2):
        assert asking.run("change", what=what).state == "succeeded"

    eventually(lambda: said(fleet, "process.state_kept"))
    asking.run("look", what="gc")
    assert said(fleet, "process.state_kept") == [("change", name)]
    assert "a secret" not in fleet.logs()


def test_a_change_of_a_run_that_is_at_work_is_left_to_it(fleet):
    fleet.worker(threads=2)
    asking = Asking(fleet)
    run_id = asking.ask("move-for-a-while")
    fleet.next_start()
    for _ in range(3):
        asking.run("look", what="gc")

    fleet.go_on(run_id)

    assert asking.end_of(run_id).result == ["/"]
    assert asking.run("look", what="folder").result != "/"
    assert said(fleet, "process.state_put_back") == []


def test_a_change_is_put_back_once_all_that_may_have_made_it_have_ended(fleet):
    fleet.worker(threads=2)
    asking = Asking(fleet)
    before = asking.run("look", what="folder").result
    (waiting,) = fleet.request("wait")
    fleet.next_start()
    asking.run("change", what="folder")
    assert asking.run("look", what="folder").result == "/", "another run is at work, which may have made it"

    fleet.go_on(waiting)
    asking.end_of(waiting)

    assert asking.run("look", what="folder").result == before
    eventually(lambda: said(fleet, "process.state_put_back"))
    assert said(fleet, "process.state_put_back") == [("change, wait", "working directory")]


def test_signals_are_not_a_jobs_to_handle(asking):
    run = asking.run("handle-signal")

    assert (run.state, run.error.partition(":")[0]) == ("dead", "ValueError")
