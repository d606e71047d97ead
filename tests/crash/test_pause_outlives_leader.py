"""A pause in a real fleet: it stays active when processes die, ends at its time, and no waiting run is lost."""

from datetime import timedelta

import pytest

from core import every
from core.ledger import pauses
from tests.support.eventually import eventually

pytestmark = pytest.mark.crash

RUNS = 200
PAUSED_SECONDS = 8


@pytest.fixture
def busy(make_fleet):
    """Start two workers and a scheduler, with a slot each second."""
    fleet = make_fleet(jobs="tick,touch,wait")
    fleet.together(fleet.worker, fleet.worker, fleet.scheduler)
    eventually(lambda: fleet.effects("tick"))
    return fleet


@pytest.fixture
def pause(busy):
    """Pause the queue of all jobs for some seconds."""
    until = busy.now() + timedelta(seconds=PAUSED_SECONDS)
    with busy.engine.begin() as connection:
        return pauses.begin(connection, "queue:chaos", by="ann", reason=None, until=until)


def test_a_pause_outlives_the_leader_and_ends_by_itself_and_what_waited_runs_once(busy, pause):
    waiting = busy.request("touch", RUNS)
    busy.carry("touch", waiting)  # messages that arrive during the pause
    eventually(lambda: busy.rows("SELECT 1 FROM rota_runs WHERE reason = 'paused'"))
    busy.kill(busy.group_of(busy.leader()))

    eventually(lambda: busy.now() >= pause.until, within=PAUSED_SECONDS + 5)
    ended = "SELECT count(*) AS runs FROM rota_runs WHERE job = 'touch' AND state = 'succeeded'"
    eventually(lambda: busy.rows(ended)[0].runs == RUNS)

    assert sorted(effect.run_id for effect in busy.effects("touch")) == waiting
    assert all(effect.at >= pause.until for effect in busy.effects("touch"))
    assert_slots_tell_of_the_pause(busy, pause)


def test_what_is_at_work_when_a_pause_begins_ends_its_work(busy, request):
    (at_work,) = busy.request("wait")
    assert busy.next_start().run_id == at_work
    pause = request.getfixturevalue("pause")
    busy.go_on(at_work)

    eventually(lambda: busy.effects("wait"), within=PAUSED_SECONDS)
    (run,) = busy.runs("wait")
    assert (run.state, run.attempt) == ("succeeded", 1)
    assert run.finished_at < pause.until


def assert_slots_tell_of_the_pause(fleet, pause) -> None:
    """Assert that each slot in the pause is recorded as skipped, and that later slots succeed."""
    after = pause.until + timedelta(seconds=3)
    due = list(every(seconds=1).between(pause.paused_at, after))
    recorded = "SELECT slot, state, reason FROM rota_runs WHERE job = 'tick' AND slot = ANY(:due) ORDER BY slot"

    def over():
        rows = fleet.rows(recorded, due=due)
        return rows if len(rows) == len(due) and all(row.state in ("succeeded", "skipped") for row in rows) else None

    rows = eventually(over)
    for row in rows:
        was_paused = pause.covers(row.slot)
        assert (row.state, row.reason) == (("skipped", "paused") if was_paused else ("succeeded", None)), row.slot
