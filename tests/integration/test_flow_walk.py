"""I3, I4, I6: in a random sequence of events, no rule of order, limits or cancels is broken, and no run is stuck."""

from functools import partial
from random import Random

import pytest

from core import database as databases
from tests.support.flow_walk import Walk, elsewhere, here


@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk_breaks_no_rule_and_every_run_ends(seed, database, ledger, start_process, use_jobs):
    use_jobs(here)
    assert here.name == elsewhere.name

    with databases.autocommit(database) as connection:
        walk = Walk(ledger, connection, partial(start_process, queues=["default"]), Random(seed))
        walk.go(150)
        walk.finish()

    assert {row.state for row in ledger.rows("SELECT state FROM rota_runs")} <= {"succeeded", "dead", "missed"}
    assert {walk.ledger.run(run_id).reason for run_id in walk.cancelled} <= {"cancelled"}
