"""Every sweep of expiry and maintenance: four workers run it at once, are killed with SIGKILL in the middle, and others
finish it.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from core.enqueue import enqueue_many
from core.ledger import slots
from core.ledger.slots import Watermark
from core.plugins import loading
from core.testing import create_database, drop_database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, fleet
from tests.support.sweeps import IMAGES_PER_RUN, SWEEPS, WORKERS, Scene, Sweep

pytestmark = pytest.mark.crash

NAME = "test_every_sweep_killed"


@pytest.fixture(scope="module")
def started(template, embedded, tmp_path_factory) -> Iterator[Scene]:
    """Yield one database, Redis and upload root for all sweeps, with workers that live until they are killed."""
    url, folder = create_database(template, NAME, template=True), tmp_path_factory.mktemp("sweeps")
    root = folder / "uploads"
    root.mkdir()
    environ = {
        "ROTA_MAINTENANCE_UPLOAD_ROOT": str(root),
        "ROTA_MAINTENANCE_TEMP_IMAGES_PER_RUN": str(IMAGES_PER_RUN),
        "ROTA_DISPATCH_SECONDS": "0.2",
    }
    with fleet(folder, url, embedded[1].url, jobs="none", environ=environ) as service:
        service.redis.flushall()
        account_for_slots(service)
        yield Scene(service, root)
    drop_database(template, NAME)


@pytest.fixture
def scene(started: Scene) -> Scene:
    """Return the scene without rows of earlier sweeps, with all its workers."""
    started.empty()
    started.staff()
    return started


def account_for_slots(service: Fleet) -> None:
    """Record all slots up to tomorrow as accounted for, so that no slot comes due during the tests."""
    tomorrow = service.now() + timedelta(days=1)
    scheduled = loading.current().scheduled()
    with service.engine.begin() as connection:
        slots.account(connection, {job.name: Watermark(str(job.schedule), tomorrow) for job in scheduled})


def test_no_sweep_is_forgotten():
    ours = {name for name, plugin in loading.current().owners.items() if plugin.name in {"expiry", "maintenance"}}

    assert ours == set(SWEEPS)


@pytest.mark.parametrize("job", SWEEPS)
def test_four_workers_killed_in_the_middle_of_a_sweep_are_followed_by_others_who_finish_it(scene: Scene, job: str):
    sweep = SWEEPS[job]
    sweep.fill(scene)
    untouched = sweep.untouched(scene)

    run_ids, left = kill_in_the_middle(scene, sweep, lambda: request_at_once(scene, job), held=WORKERS)
    scene.staff()
    runs = finished(scene, run_ids)

    assert {(run.state, run.attempt, run.crashes, run.failures) for run in runs} == {("succeeded", 2, 1, 0)}
    assert_done(scene, sweep, untouched)
    assert not sweep.counts or sum(run.result[count] for run in runs for count in sweep.counts) == left


@pytest.mark.parametrize("job", ["check-expired-points", "cleanup-completed-task-files"])
def test_of_four_runs_by_the_jobs_own_rule_three_wait_until_the_killed_one_is_finished(scene: Scene, job: str):
    sweep = SWEEPS[job]
    sweep.fill(scene)
    untouched = sweep.untouched(scene)

    run_ids, left = kill_in_the_middle(scene, sweep, lambda: request_by_rule(scene, job), held=1)
    scene.staff()
    runs = finished(scene, run_ids)

    ended = sorted((run.state, run.reason, run.attempt, run.crashes) for run in runs)
    assert ended == [("succeeded", None, 1, 0)] * 3 + [("succeeded", None, 2, 1)]
    assert_done(scene, sweep, untouched)
    assert sum(run.result[count] for run in runs if run.result for count in sweep.counts) == left


def request_at_once(scene: Scene, job: str) -> list[int]:
    """Request four runs that may overlap, unlike runs of the schedule, so that four workers work at once."""
    return scene.fleet.request(job, WORKERS, queue=loading.current().job(job).queue)


def request_by_rule(scene: Scene, job: str) -> list[int]:
    """Request four runs as an application does, and wait until three of them wait for their turn. Return their ids."""
    with Session(scene.fleet.engine) as session, session.begin():
        run_ids = enqueue_many(session, job, [{}] * WORKERS)
    eventually(lambda: [run.reason for run in runs_of(scene, run_ids)].count("overlap") == WORKERS - 1)
    return run_ids


def kill_in_the_middle(
    scene: Scene, sweep: Sweep, request: Callable[[], list[int]], *, held: int
) -> tuple[list[int], int]:
    """Kill all workers when ``held`` of them are in the middle of the sweep. Return the runs and the number of
    remaining rows.
    """
    all_of_it = sweep.left(scene)
    with scene.gate(sweep.gate):
        run_ids = request()
        scene.wait_until_held(held)
        scene.kill()
    scene.wait_until_disconnected()
    left = sweep.left(scene)
    assert 0 < left < all_of_it, "they were not killed in the middle"
    assert sweep.torn(scene) == []
    return run_ids, left


def runs_of(scene: Scene, run_ids: list[int]) -> list[Any]:
    """Return the rows of these runs."""
    return scene.fleet.rows("SELECT * FROM rota_runs WHERE id = ANY(:ids)", ids=run_ids)


def finished(scene: Scene, run_ids: list[int]) -> list[Any]:
    """Return the rows of these runs when all have ended."""
    eventually(lambda: all(run.finished_at for run in runs_of(scene, run_ids)))
    return runs_of(scene, run_ids)


def assert_done(scene: Scene, sweep: Sweep, untouched: tuple[Any, ...]) -> None:
    """Assert that the result is that of a single run without an interruption."""
    assert sweep.left(scene) == 0
    assert scene.fleet.rows(sweep.wrong) == []
    assert sweep.torn(scene) == []
    assert sweep.untouched(scene) == untouched
