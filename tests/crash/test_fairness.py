"""Long jobs among thousands of short jobs: no process keeps messages that another process could start."""

from itertools import pairwise

import pytest

from tests.support.eventually import eventually

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

LONG, SHORT = 10, 10_000
STARTS = """
    SELECT id, job, worker, extract(epoch FROM started_at) AS began
    FROM rota_runs WHERE state = 'succeeded' AND job IN ('long', 'nothing') ORDER BY started_at
"""


def test_ten_long_jobs_among_ten_thousand_short_ones(make_fleet, record_property):
    """Of the 16 threads in two processes, six have no long job. So no run waits for the end of a long job."""
    fleet = make_fleet(jobs="long,nothing")
    fleet.worker(processes=2)
    fleet.request("nothing", 1000)
    eventually(lambda: len(fleet.rows(STARTS)) == 1000)  # now processes know short jobs, and fetch many

    for _ in range(LONG):
        fleet.request("nothing", SHORT // LONG)
        fleet.request("long")
    eventually(lambda: len(fleet.rows(STARTS)) == 1000 + SHORT + LONG, within=120, every=0.5)

    rows = fleet.rows(STARTS)[1000:]
    long, short = ([row for row in rows if row.job == name] for name in ("long", "nothing"))
    gap = max(later.began - earlier.began for earlier, later in pairwise(short))
    lag = max(row.began - max(each.began for each in short if row.id - 100 < each.id < row.id) for row in long)
    record_property("longest_gap_between_short_starts_seconds", round(float(gap), 3))
    record_property("longest_lag_of_a_long_behind_short_ones_seconds", round(float(lag), 3))
    assert gap < 1, "short ones stood still"
    assert lag < 1, "a long one waited although those requested with it did not"
    assert len({row.worker for row in long}) == 2
