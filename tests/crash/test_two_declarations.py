"""Two releases declare a job differently and run at the same time: each run goes to a worker that its arguments fit."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dramatiq.message import Message
from sqlalchemy import text

from core.ledger.carrier import OutgoingRun
from core.transport import redis as redis_broker
from core.transport.redis import RedisCarrier, RotaBroker
from tests.support import shaped
from tests.support.eventually import eventually
from tests.support.shaped import declared

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

LONGEST = 60
#: The number of requests of each form, as runs and as messages.
COUNT = 20
REQUEST = text("""
    INSERT INTO rota_runs (job, queue, args, exclusive, sent_at)
    SELECT :job, 'shaped', CAST(args AS jsonb), false, clock_timestamp()
    FROM unnest(CAST(:args AS text[])) WITH ORDINALITY AS each (args, n) ORDER BY n RETURNING id
""")

#: For each change: parameters and arguments of the old release, those of the new release, and the release whose
#: arguments the other release refuses.
CHANGES = {
    "added": ("n: int", lambda n: {"n": n}, "n: int, region: str = 'uk'", lambda n: {"n": n, "region": "fr"}, "new"),
    "removed": ("n: int, note: str = ''", lambda n: {"n": n, "note": "x"}, "n: int", lambda n: {"n": n}, "old"),
    "renamed": ("number: int", lambda n: {"number": n}, "n: int", lambda n: {"n": n}, "old"),
    "of another type": ("n: int", lambda n: {"n": n}, "n: str", lambda n: {"n": str(n)}, "new"),
}


@pytest.fixture
def two(make_fleet, tmp_path):
    """Return a fleet with workers of two releases."""
    return Two(make_fleet(jobs="touch"), tmp_path)


class Two:
    """Workers of an old release and of a new release, at the same time."""

    def __init__(self, fleet, folder) -> None:
        self.fleet = fleet
        self.folder = folder
        with fleet.engine.begin() as connection:
            connection.exec_driver_sql(shaped.GIVEN)

    def start(self, old: list, new: list) -> None:
        """Start a worker with the jobs ``old``, and one with the jobs ``new``."""
        path = self.fleet.environment()["PYTHONPATH"]
        sites = [shaped.install(self.folder / name, *jobs) for name, jobs in (("old", old), ("new", new))]
        environs = [{"PYTHONPATH": os.pathsep.join([str(site), path])} for site in sites]
        self.old, self.new = self.fleet.together(*[lambda e=environ: self.fleet.worker(**e) for environ in environs])
        assert eventually(self.fleet.leader, within=LONGEST)

    def request(self, job: str, args: list[dict[str, Any]]) -> list[int]:
        """Request runs, as an application of either release does, and send their messages."""
        with self.fleet.engine.begin() as connection:
            ids = list(connection.execute(REQUEST, {"job": job, "args": [json.dumps(each) for each in args]}).scalars())
        broker = RotaBroker(redis_broker.connect(self.fleet.redis_url))
        RedisCarrier(broker.redis_queues).send([OutgoingRun(run_id, job, shaped.QUEUE) for run_id in ids])
        broker.close()
        return ids

    @contextmanager
    def paused(self, release: str) -> Iterator[None]:
        """Pause the worker of that release, so that all messages first reach the other release."""
        worker = self.new if release == "new" else self.old
        self.fleet.pause(worker)
        try:
            yield
        finally:
            self.fleet.wake(worker)

    def send(self, job: str, args: list[dict[str, Any]]) -> None:
        """Send messages of the fast lane."""
        broker = RotaBroker(redis_broker.connect(self.fleet.redis_url))
        for each in args:
            broker.enqueue(Message(queue_name=shaped.QUEUE, actor_name=job, args=(), kwargs=each, options={}))
        broker.close()

    def given(self, job: str) -> list[tuple[dict[str, Any], int]]:
        """Return the arguments with which the job was called, each with the process group of its worker."""
        rows = self.fleet.rows("SELECT args, pid FROM given WHERE job = :job", job=job)
        return [(row.args, os.getpgid(row.pid)) for row in rows]

    def runs(self, ids: list[int]) -> list[Any]:
        """Return the rows of these runs."""
        return self.fleet.rows("SELECT * FROM rota_runs WHERE id = ANY(:ids) ORDER BY id", ids=ids)

    def end(self, ids: list[int]) -> list[Any]:
        """Wait until these runs have ended. Return their rows."""
        eventually(lambda: all(run.finished_at for run in self.runs(ids)), within=LONGEST)
        return self.runs(ids)

    def dead_letters(self) -> int:
        """Return the number of dead letters."""
        return int(self.fleet.redis.hlen(f"dramatiq:{shaped.QUEUE}.XQ.msgs"))


def counted(args: list[dict[str, Any]]) -> Counter[str]:
    """Return how often each of the arguments was given."""
    return Counter(json.dumps(each, sort_keys=True) for each in args)


@pytest.mark.parametrize("change", CHANGES)
def test_no_run_or_message_is_dead_that_a_live_release_fits(two, change):
    before, old_form, after, new_form, refused = CHANGES[change]
    two.start(
        [declared("shape", before), declared("shape-fast", before, ledger=False)],
        [declared("shape", after), declared("shape-fast", after, ledger=False)],
    )
    asked = [form(n) for n in range(COUNT) for form in (old_form, new_form)]

    with two.paused(refused):
        ids = two.request("shape", asked)
        two.send("shape-fast", asked)
        eventually(lambda: all(run.refused_by or run.finished_at for run in two.runs(ids)), within=LONGEST)
        eventually(lambda: len(two.given("shape-fast")) >= COUNT, within=LONGEST)

    ended = two.end(ids)
    assert {(run.state, run.attempt, run.failures, run.crashes) for run in ended} == {("succeeded", 1, 0, 0)}
    eventually(lambda: len(two.given("shape-fast")) + two.dead_letters() >= len(asked), within=LONGEST)
    assert two.dead_letters() == 0
    with pytest.raises(AssertionError):  # no run is executed a second time
        eventually(lambda: len(two.given("shape")) + len(two.given("shape-fast")) > 2 * len(asked), within=2)
    for job in ("shape", "shape-fast"):
        given = [args for args, _ in two.given(job)]
        assert len(given) == len(asked)
        assert [form for form in asked if not any(form.items() <= args.items() for args in given)] == []


def test_a_run_or_message_that_fits_no_live_release_is_dead_at_its_first_attempt(two):
    two.start(
        [declared("shape", "number: int"), declared("shape-fast", "number: int", ledger=False)],
        [declared("shape", "n: int"), declared("shape-fast", "n: int", ledger=False)],
    )

    two.send("shape-fast", [{"m": 1}])
    (neither,) = two.end(two.request("shape", [{"m": 1}]))
    eventually(lambda: two.dead_letters() == 1, within=LONGEST)
    two.fleet.terminate(two.old)
    (former,) = two.end(two.request("shape", [{"number": 1}]))

    for run in (neither, former):
        assert (run.state, run.reason, run.attempt) == ("dead", "arguments", 1)


def test_a_job_that_changes_lanes_is_given_its_arguments_once(two):
    lanes = [("into-ledger", False, True), ("out-of-ledger", True, False)]
    two.start(
        [declared(name, "n: int = -1", ledger=before) for name, before, _ in lanes],
        [declared(name, "n: int = -1", ledger=after) for name, _, after in lanes],
    )
    requested, sent = [{"n": n} for n in range(COUNT)], [{"n": n} for n in range(COUNT, 2 * COUNT)]

    ids = [run_id for name, *_ in lanes for run_id in two.request(name, requested)]
    for name, *_ in lanes:
        two.send(name, sent)

    ended = two.end(ids)
    assert {(run.state, run.attempt) for run in ended} == {("succeeded", 1)}
    for name, *_ in lanes:
        eventually(lambda name=name: len(two.given(name)) >= len([*requested, *sent]), within=LONGEST)
        assert counted([args for args, _ in two.given(name)]) == counted([*requested, *sent])
    assert two.dead_letters() == 0
