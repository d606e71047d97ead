"""I1 for the plugins of this repository: each is uninstalled, disabled and broken, with real wheels and real pip."""

import inspect
import json
import re
import shutil
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

import pytest
from sqlalchemy import text

from core import Job
from core.plugins import loading
from tests.support.eventually import eventually
from tests.support.service import Service
from tests.support.wheels import PLUGINS, build, wheel_of

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

FOLDERS = {folder.name: folder for folder in PLUGINS}
EVERYTHING = dict.fromkeys(FOLDERS, "loaded")
WAYS = ("uninstalled", "disabled", "broken")
LONGEST = 60
REQUEST = text("""
    INSERT INTO rota_runs (job, queue, key, exclusive)
    SELECT job, queue, :key, false FROM unnest(:jobs, :queues) AS _ (job, queue) RETURNING id
""")
#: Inserts a release with the retired jobs, of a plugin that was uninstalled.
FORMER_RELEASE = text("""
    INSERT INTO rota_releases (fingerprint, jobs, first_seen_at, last_seen_at)
    VALUES ('former', CAST(:jobs AS jsonb), now() - interval '1 day', now())
""")
#: Jobs that the business retired, but that the second scheduler of the old system still ran.
RETIRED = ["auto-complete-expired-time-slot-tasks", "check-and-end-activities", "auto-generate-future-time-slots"]
CHECKED = {"uninstalled": None, "disabled": "info", "broken": "wrong", "loaded": "ok"}


class Marketplace(Service):
    """A service with the plugins of this repository. A *path* is a part of Rota that knows jobs, such as a command or
    the metrics.
    """

    def bring(self, how: dict[str, str]) -> None:
        """Load each plugin, or take it away in the given way."""
        self.environment.uninstall(*map(distribution, how))
        kept = [name for name, way in how.items() if way != "uninstalled"]
        self.environment.install(*(self.needing_newer(n) if how[n] == "broken" else wheel_of(FOLDERS[n]) for n in kept))
        self.environ["ROTA_DISABLED_PLUGINS"] = ",".join(name for name in how if how[name] == "disabled")

    def needing_newer(self, name: str) -> Path:
        """Return the wheel of a plugin that requires a version of Rota that does not exist."""
        source = shutil.copytree(FOLDERS[name], self.folder / "newer" / name)
        project = source / "pyproject.toml"
        project.write_text(project.read_text().replace('"rota>=0.1.0"', '"rota>=99"'))
        return build(source, self.folder / "wheels" / name)

    def request(self, key: str) -> list[int]:
        """Request a run of every job of these plugins."""
        ids: list[int] = []
        with self.fleet.engine.begin() as connection:
            for name in FOLDERS:
                jobs = sorted(jobs_of(name))
                values = {"key": key, "jobs": jobs, "queues": [queue_of(job) for job in jobs]}
                ids += connection.execute(REQUEST, values).scalars()
        return ids

    def all_are(self, state: str, ids: list[int]) -> bool:
        """Return whether all of these runs are in that state."""
        counted = "SELECT count(*) AS n FROM rota_runs WHERE id = ANY(:ids) AND state = :state"
        return bool(self.fleet.rows(counted, ids=ids, state=state)[0].n == len(ids))

    def slots(self) -> set[str]:
        """Return the jobs whose slots the dispatcher accounts for."""
        return {row.job for row in self.fleet.rows("SELECT job FROM rota_schedules")}

    def jobs_on_paths(self) -> dict[str, set[str]]:
        """Return the jobs that each path knows."""
        actors, periodic = self.actors_and_periodic()
        return {
            "scheduler and workers": actors,
            "scheduler, schedules": periodic,
            "local mode": self.local_actors(),
            "dispatcher, whom to send": self.known(),
            "dispatcher, slots": self.slots(),
            "rota jobs": self.jobs(),
            "metrics": self.measured(),
        }

    def measured(self, *, orphaned: bool = False) -> set[str]:
        """Return the jobs with a metric other than orphaned runs; with ``orphaned``, the jobs with orphaned runs."""
        lines = [line for line in self.metrics().splitlines() if ('status="orphaned"' in line) == orphaned]
        return set(re.findall(r'task="([^"]+)"', "\n".join(lines)))

    def paths(self) -> dict[str, set[str]]:
        """Return the plugins that each path knows, by their jobs, queues and tables."""
        checked = {answer["name"] for answer in self.json("check", "--live")["checks"]}
        return {
            **{path: owners(jobs) for path, jobs in self.jobs_on_paths().items()},
            "rota check, queues": FOLDERS.keys() & {name.removeprefix("workers on ") for name in checked},
            "rota check, tables": FOLDERS.keys() & {name.removeprefix("tables of ") for name in checked},
        }

    def outcomes(self) -> dict[str, str | None]:
        """Return the outcome of ``rota check`` for each plugin."""
        answers = {answer["name"]: answer["outcome"] for answer in self.json("check")["checks"]}
        return {name: answers.get(f"plugin {name}") for name in FOLDERS}


def each_another_way(number: int) -> dict[str, str]:
    """Return a different way for each plugin. Over three consecutive numbers, each plugin gets each way."""
    return dict(zip(FOLDERS, islice(cycle(WAYS), number, None), strict=False))


def distribution(name: str) -> str:
    return f"rota-{name.replace('_', '-')}"


def jobs_of(name: str) -> set[str]:
    """Return the jobs of a plugin that need no arguments, as they are installed in the environment of the tests."""
    owners = loading.current().owners
    return {job.name for job in loading.current() if owners[job.name].name == name and not needs_arguments(job)}


def queue_of(job: str) -> str:
    """Return the queue of a job, as it is installed in the environment of the tests."""
    return loading.current().job(job).queue


def needs_arguments(job: Job) -> bool:
    _, *parameters = inspect.signature(job.function).parameters.values()
    return any(each.default is inspect.Parameter.empty for each in parameters)


def owners(jobs: Iterable[str]) -> set[str]:
    """Return the plugins of this repository to which these jobs belong."""
    found = {loading.current().owners[job].name for job in jobs if job in loading.current().owners}
    return found & FOLDERS.keys()


@pytest.fixture
def make_marketplace(make_plain_service, tmp_path):
    """Yield a function that makes a service with every plugin of this repository. The settings of ``mail`` and
    ``maintenance`` stay in the environment, as they would in a unit file.
    """

    def make(**options) -> Marketplace:
        for folder in ("uploads", "mail"):
            (tmp_path / folder).mkdir()
        environ = {
            "ROTA_MAINTENANCE_UPLOAD_ROOT": str(tmp_path / "uploads"),
            "ROTA_MAIL_STORE": f"file://{tmp_path / 'mail'}",
        }
        service = make_plain_service(Marketplace, environ=environ, **options)
        service.bring(EVERYTHING)
        return service

    return make


def test_each_plugin_of_this_repository_leaves_every_path_by_every_way_and_comes_back(make_marketplace):
    service = make_marketplace()
    there = service_with_all_paths(service, "first")
    assert there == {path: set(FOLDERS) for path in there}

    left = []
    for number in range(len(WAYS)):
        service.stop()
        how = each_another_way(number)
        service.bring(how)
        ids = service.request(f"left-{number}")
        service.start()
        eventually(lambda ids=ids: service.all_are("orphaned", ids), within=LONGEST)
        (touched,) = service.fleet.request("touch")
        eventually(lambda run=touched: service.all_are("succeeded", [run]), within=LONGEST)

        rows = service.fleet.rows("SELECT job, reason, attempt FROM rota_runs WHERE id = ANY(:ids)", ids=ids)
        assert {(*owners([row.job]), row.reason, row.attempt) for row in rows} == {(n, how[n], 0) for n in FOLDERS}
        away = service.paths()
        assert away == {path: set() for path in away}
        assert service.outcomes() == {name: CHECKED[way] for name, way in how.items()}
        assert all(service.rota("run", min(jobs_of(name))).returncode == 1 for name in FOLDERS)
        left += ids

    service.stop()
    service.bring(EVERYTHING)
    back = service_with_all_paths(service, "back")
    assert back == there
    for name in FOLDERS:
        adopted = service.rota("orphans", "adopt", "--plugin", name, "--yes")
        assert adopted.returncode == 0, adopted.stderr
    eventually(lambda: service.all_are("succeeded", left), within=LONGEST)


@pytest.mark.parametrize(("path", "number"), [("local", 0), ("auto", 1)])
def test_what_plugins_that_are_away_have_left_is_on_no_path_without_redis_either(
    make_marketplace, own_redis, path, number
):
    """In local mode, and in ``auto`` after Redis is lost; on queues of the removed plugins, and on a queue that a
    worker serves.
    """
    service = make_marketplace(redis_url=own_redis.url)
    service.remember()
    how = each_another_way(number)
    service.bring(how)
    gone = [(job, queue) for name in FOLDERS for job in sorted(jobs_of(name)) for queue in (name, "chaos")]

    with service.without_redis(path, own_redis):
        ended = service.assert_passed_over(gone, beside=[("touch", "chaos")])
        known = service.known()

    assert {(*owners([row.job]), row.reason) for row in ended} == set(how.items())
    assert all(row.finished_at > row.due_at for row in ended)
    assert "touch" in known
    assert not owners(known)


def service_with_all_paths(service: Marketplace, key: str) -> dict[str, set[str]]:
    """Start the service, and let every job run. Then return what each path knows."""
    assert service.rota("db", "upgrade").returncode == 0
    service.start()
    ids = service.request(key)
    eventually(lambda: service.all_are("succeeded", ids), within=LONGEST)
    eventually(lambda: owners(service.slots()) == set(FOLDERS), within=LONGEST)
    return service.paths()


def test_the_retired_jobs_are_on_no_path_with_every_plugin_of_this_repository(make_marketplace, own_redis):
    """Over Redis, directly from the ledger when Redis is lost, and in local mode. Messages of the retired jobs are on
    every queue.
    """
    service = make_marketplace(redis_url=own_redis.url)
    present = [("touch", "chaos"), *((min(jobs_of(name)), queue_of(min(jobs_of(name)))) for name in FOLDERS)]
    retired = [(job, queue) for _, queue in present for job in RETIRED]
    queues = ["chaos-fast", *(queue for _, queue in present)]
    carried = {job: service.fleet.request(job)[0] for job in RETIRED}
    with service.fleet.engine.begin() as connection:
        connection.execute(
            FORMER_RELEASE, {"jobs": json.dumps({job: {"plugin": "gone", "queue": "x"} for job in RETIRED})}
        )
    service.start()

    for job in RETIRED:
        service.send(job, "chaos", run_id=carried[job])
        for queue in queues:
            service.send(job, queue)
    service.assert_passed_over(retired, beside=present)
    ended = "SELECT DISTINCT state, reason, attempt FROM rota_runs WHERE id = ANY(:ids)"
    assert service.fleet.rows(ended, ids=list(carried.values())) == [("orphaned", "uninstalled", 0)]
    eventually(lambda: {service.dead_letters(queue) for queue in queues} == {len(RETIRED)}, within=LONGEST)
    eventually(lambda: owners(service.slots()) == set(FOLDERS), within=LONGEST)

    on_paths = service.jobs_on_paths()
    assert {path for path, jobs in on_paths.items() if owners(jobs) != set(FOLDERS)} == set()
    assert {path: jobs & set(RETIRED) for path, jobs in on_paths.items()} == {path: set() for path in on_paths}
    assert service.measured(orphaned=True) == set(RETIRED)
    for job in RETIRED:
        refused = service.rota("run", job)
        assert (refused.returncode, f"unknown job {job!r}" in refused.stderr) == (1, True)
    assert not [answer["name"] for answer in service.json("check", "--live")["checks"] if answer["outcome"] == "wrong"]

    service.lose(own_redis)
    service.assert_passed_over(retired, beside=present)
    service.stop()
    with service.without_redis("local", own_redis):
        service.assert_passed_over(retired, beside=present)
        assert not service.known() & set(RETIRED)
