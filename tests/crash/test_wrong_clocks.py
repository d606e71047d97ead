"""I2, I8: when a host's clock jumps, no slot is lost or doubled. Lateness is measured by PostgreSQL's clock."""

import pytest

from tests.support.eventually import elapse, eventually

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

SLOTS = """
    SELECT slot, state, extract(epoch FROM started_at - slot) AS late FROM rota_runs
    WHERE job = 'tick' AND slot BETWEEN :since AND :until ORDER BY slot
"""


@pytest.mark.parametrize("jump", [-40.0, -3600.0, 3600.0])
def test_a_clock_that_jumps_under_scheduler_and_worker_costs_no_slot(make_fleet, tmp_path, jump, record_property):
    clock = tmp_path / "clock"
    clock.write_text("0")
    fleet = make_fleet(jobs="tick", environ={"CHAOS_CLOCK": str(clock)})
    scheduler, worker = fleet.together(fleet.scheduler, fleet.worker)
    eventually(lambda: fleet.effects("tick"))
    since = fleet.now()

    for wrong in (jump, 0.0):
        clock.with_suffix(".new").write_text(str(wrong))
        clock.with_suffix(".new").replace(clock)
        elapse(5)
    until = fleet.now()
    elapse(2)

    slots = fleet.rows(SLOTS, since=since, until=until)
    record_property("worst_lateness_seconds", round(float(max(row.late or 0 for row in slots)), 2))
    assert len(slots) >= 9
    assert {row.state for row in slots} == {"succeeded"}
    assert max(row.late for row in slots) < 2
    assert [row.slot for row in slots] == sorted(
        {effect.slot for effect in fleet.effects("tick")} & {r.slot for r in slots}
    )
    assert scheduler.poll() is None
    assert worker.poll() is None
