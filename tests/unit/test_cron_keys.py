"""The slots of cron expressions that may be among the newest slots of a key, whatever its phase and its stretch."""

from datetime import UTC, datetime, timedelta

import pytest

from core.jobs.grid import grid
from core.ledger.key_slots import CronKeys

HOUR = timedelta(hours=1)
NOW = datetime(2026, 3, 29, 5, 0, 20, tzinfo=UTC)
AFTER = NOW - 9 * HOUR
UNTIL = NOW - timedelta(minutes=11)


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "spec", ["* * * * * UTC", "*/7 1-3 * * * Europe/Berlin", "3,4,50 * * * * UTC", "0 4 * * * UTC"]
)
def test_each_key_finds_its_newest_slots_in_the_window(spec, most):
    found = list(CronKeys(spec, HOUR, most_stretched=3).newest(most, AFTER, UNTIL, NOW))

    for stretched in range(4):
        for phase in (timedelta(seconds=seconds) for seconds in (0, 19, 20, 21, 660, 661, 3599)):
            kept = [
                slot + phase
                for _, slot, stretch, outdated_by in found
                if stretch == stretched and AFTER < slot + phase <= UNTIL and outdated_by + phase > NOW
            ]
            newest = list(grid(spec, int(phase.total_seconds()), stretched).between(AFTER, NOW))[-most:]
            assert kept == [slot for slot in newest if slot <= UNTIL], (stretched, phase)


@pytest.mark.parametrize(("spread", "most", "count"), [(0, 1, 1), (0, 90, 90), (3600, 1, 61)])
def test_slots_that_are_among_the_newest_of_no_key_are_left_out(spread, most, count):
    keys = CronKeys("* * * * * UTC", timedelta(seconds=spread), most_stretched=0)

    assert len(list(keys.newest(most, AFTER, NOW, NOW))) == count
