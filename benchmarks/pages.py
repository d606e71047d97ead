"""Measures how soon the HTTP service answers beside a long history: lists, details, searches, plans and exports.

``rota web`` is a process of its own. The history has ``--runs`` runs, see ``benchmarks.large_ledger``, and the ledger
has 1,000 schedules. With ``--data``, the servers keep their data in this folder, so that the next run needs no filling.

Afterwards, the rate of no-op runs is measured without users, and beside five users who each click once a second, in
turns.

python -m benchmarks.pages [--runs 10000000] [--data FOLDER] [--only NAME ...] [--samples 50] [--pairs 5]
"""

import argparse
import base64
import http.client
import json
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count, cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from sqlalchemy.orm import Session

from benchmarks import goals, harness, large_ledger, meter
from benchmarks.harness import Bench
from benchmarks.side import cpu, cpu_of_all
from core import Keyed, KeySchedule, every, job, sync_schedules
from core.embedded import EmbeddedPostgres, EmbeddedRedis, temporary_folder
from core.ledger import run_counts
from core.plugins import loading
from core.testing import registry_of

PLUGIN = '''
from datetime import timedelta

from benchmarks import meter
from core import Keyed, cron, every, hookimpl, job


def one(number):
    schedule = cron(f"{number % 60} * * * *") if number % 2 else None

    @job(f"job-{number:02}", queue=f"queue-{number % 5}", schedule=schedule, overlap="skip" if schedule else "allow")
    def work(run, customer: int = 0, region: str = "", rows: int = 0) -> None:
        """One of a hundred jobs."""

    return work


@job("bench-ledger", queue="bench-ledger", overlap="allow")
def ledger(run) -> None:
    """A run of the ledger."""
    meter.tick()


@job("bench-poll", queue="bench-ledger", keyed=Keyed(default=every(minutes=10)))
def poll(run) -> None:
    """A job with a schedule for each of a thousand keys."""


@hookimpl
def register_jobs():
    return [ledger, poll, *map(one, range(100))]
'''
#: The same job, for this process.
POLL = job("bench-poll", queue="bench-ledger", keyed=Keyed(default=every(minutes=10)))(lambda run: None)
SCHEDULES = 1000
TOKEN = "benchmark-of-the-pages-0123456789"
HEAD = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
API = "/api/v1"
#: The rate is measured over this many runs.
BATCH = 20_000
USERS, THINK_SECONDS = 5, 1.0
#: The CSV with so many rows, its time in seconds, and the memory that it may take, in MiB.
CSV_ROWS, CSV_SECONDS, CSV_MIB = 1_000_000, 60, 30


class Client:
    """A browser with one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def get(self, path: str, **query: object) -> Any:
        """The answer's JSON."""
        return self.ask("GET", path, query)

    def ask(
        self, method: str, path: str, query: Mapping[str, object] | None = None, body: object = None,
        *, even_503: bool = False,
    ) -> Any:  # fmt: skip
        """The answer's JSON. Raises SystemExit if the service refuses."""
        whole = f"{path}?{urlencode(query)}" if query else path
        self._connection.request(method, whole, None if body is None else json.dumps(body), HEAD)
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status >= 300 and not (even_503 and answer.status == 503):
            raise SystemExit(f"{method} {whole}: {answer.status} {said[:500]!r}")
        return json.loads(said)


@dataclass(frozen=True)
class Case:
    """What is asked for, again and again, and how soon it should be there, in milliseconds."""

    ask: Callable[[Client], Any]
    p50: float
    p99: float
    samples: int | None = None


@dataclass
class Facts:
    """What the cases need to know of the ledger."""

    runs: int
    dead: list[int]
    numbers: Iterator[int] = field(default_factory=count)

    def next(self) -> int:
        """Another number at each call, so that no two requests are the same."""
        return next(self.numbers) * 7919 % large_ledger.CUSTOMERS

    def moment(self) -> datetime:
        """Another time in the history at each call."""
        return datetime.now(UTC) - timedelta(days=1 + self.next() % (large_ledger.DAYS - 2), seconds=self.next())


def deep(client: Client, share: float, total: int, **query: object) -> str:
    """The cursor of a page far down a list: that of its second page with another place."""
    next_page = client.get(f"{API}/runs", limit=1, **query)["next"]
    version, bound_to, _, at, *more = json.loads(base64.urlsafe_b64decode(next_page + "=" * (-len(next_page) % 4)))
    back = timedelta(days=large_ledger.DAYS * share)
    at = (datetime.now(UTC) - back).isoformat() if at is not None else None
    body = json.dumps([version, bound_to, int(total * (1 - share)), at, *more])
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def lists(client: Client, facts: Facts) -> dict[str, Case]:
    """The lists, each at its first page and at a page in the middle of the history."""
    found: dict[str, Case] = {}
    wanted: dict[str, dict[str, object]] = {
        "newest": {},
        "a busy job": {"job": "job-00"},
        "a rare job": {"job": "job-99"},
        "dead": {"state": "dead"},
        "orphaned": {"state": "orphaned"},
        "job and rare state": {"job": "job-99", "state": "missed"},
        "a plugin": {"plugin": "bench"},
        "a queue": {"queue": "queue-3"},
        "a day": {"since": "24h"},
        "a job's day": {"job": "job-50", "since": "24h"},
    }
    for name, query in wanted.items():
        cursor = deep(client, 0.5 if "since" not in query else 0.02, facts.runs, **query)
        found[f"runs: {name}"] = Case(lambda on, query=query: on.get(f"{API}/runs", **query), 12, 60)  # type: ignore[misc]
        found[f"runs: {name}, deep"] = Case(
            lambda on, query=query, cursor=cursor: on.get(f"{API}/runs", **query, cursor=cursor), 12, 60  # type: ignore[misc]
        )  # fmt: skip
    found["runs: key of a customer"] = Case(
        lambda on: on.get(f"{API}/runs", key=f"customer-{facts.next()}", job="job-03"), 12, 60
    )
    found["runs: key, in all jobs"] = Case(lambda on: on.get(f"{API}/runs", key=f"customer-{facts.next()}"), 12, 60)
    found["runs: key of a mailbox"] = Case(
        lambda on: on.get(f"{API}/runs", key=large_ledger.MAILBOX, job="job-03"), 12, 60
    )
    return found


def searches(facts: Facts) -> dict[str, Case]:
    """Searches in what no index has."""
    day = {"since": "24h"}
    return {
        "search: error, many": Case(lambda on: on.get(f"{API}/runs", error="timeout", **day), 150, 400),
        "search: error, none": Case(lambda on: on.get(f"{API}/runs", error=f"no {facts.next()}", **day), 150, 400),
        "search: argument": Case(lambda on: on.get(f"{API}/runs", arg=f"customer:{facts.next()}", **day), 150, 400),
        "search: argument of a job": Case(
            lambda on: on.get(f"{API}/runs", arg=f"customer:{facts.next()}", job="job-50"), 150, 400
        ),
        "search: reason, none": Case(lambda on: on.get(f"{API}/runs", reason="policy", **day), 150, 400),
    }


def others(facts: Facts) -> dict[str, Case]:
    """Everything but the lists of runs."""
    dead = cycle(facts.dead)

    def story(on: Client) -> None:
        run = next(dead)
        on.get(f"{API}/runs/{run}")
        on.get(f"{API}/runs/{run}/why")

    def plan(on: Client) -> None:
        on.ask("POST", f"{API}/plans", body={"action": "drop", "select": {"state": "dead", "limit": 100_000}})

    return {
        "health": Case(lambda on: on.ask("GET", "/health", even_503=True), 5, 50),
        "run in full, and why": Case(story, 15, 80),
        "why, a job at a time": Case(
            lambda on: on.get(f"{API}/why", job="job-00", at=facts.moment().isoformat()), 15, 80
        ),
        "chart of 30 days": Case(lambda on: on.get(f"{API}/jobs/job-00/statistics", since="30d"), 20, 80),
        "failures of 7 days": Case(lambda on: on.get(f"{API}/failures"), 40, 150),
        "jobs": Case(lambda on: on.get(f"{API}/jobs"), 30, 150),
        "schedules": Case(lambda on: on.get(f"{API}/schedules", limit=200), 30, 150),
        "queues": Case(lambda on: on.get(f"{API}/queues"), 30, 150),
        "workers": Case(lambda on: on.get(f"{API}/workers"), 30, 150),
        "plan over 100,000 dead": Case(plan, 400, 1500, samples=10),
    }


def measure(
    port: int, cases: Mapping[str, Case], samples: int, service: psutil.Process, server: psutil.Process
) -> None:
    """Ask for each case once, and then again and again. Print the times, and the CPU time of the service and of
    PostgreSQL, which depends less on the other programs of the machine.
    """
    print(f"{'ms':34} {'p50':>8} {'p99':>8} {'web CPU':>8} {'PG CPU':>8}   goals")
    client = Client(port)
    for name, case in cases.items():
        case.ask(client)
        count, began = case.samples or samples, [cpu([service]), cpu_of_all(server)]
        times = [timed(lambda case=case: case.ask(client)) for _ in range(count)]  # type: ignore[misc]
        used = [cpu([service]) - began[0], cpu_of_all(server) - began[1]]
        p50, p99 = statistics.median(times), meter.percentile(times, 0.99)
        figures = " ".join(f"{value:8.1f}" for value in (p50, p99, *(each / count * 1000 for each in used)))
        missed = "  MISSED" if p50 > case.p50 or p99 > case.p99 else ""
        print(f"{name:34} {figures}   {case.p50:g}, {case.p99:g}{missed}", flush=True)


def timed(work: Callable[[], object]) -> float:
    """How long it takes, in milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def export(port: int, process: psutil.Process) -> None:
    """Read a large CSV. Print its time, and how much the memory of the service grows meanwhile."""
    before = most = process.memory_info().rss
    cpu_before = cpu([process])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began = time.perf_counter()
    connection.request("GET", f"{API}/runs.csv?limit={CSV_ROWS}", headers=HEAD)
    answer, lines = connection.getresponse(), 0
    while chunk := answer.read(1 << 20):
        lines += chunk.count(b"\n")
        most = max(most, process.memory_info().rss)
    seconds, mib = time.perf_counter() - began, (most - before) / 2**20
    used = cpu([process]) - cpu_before
    print(
        f"CSV of {lines - 1:,} rows: {seconds:.1f} s (goal {CSV_SECONDS}), of these {used:.1f} s of the service's CPU"
    )
    print(f"memory meanwhile: {mib:.1f} MiB more (goal {CSV_MIB})")
    goals.at_most("CSV of 1,000,000 runs", seconds, CSV_SECONDS, "s")


def beside_users(made: Bench, port: int, pairs: int, cases: Mapping[str, Case]) -> None:
    """Measure the rate of no-op runs without users and beside them, in turns. Print the ratio."""
    ratios = []
    with made.worker(made.ticks / "users", "core.main", "bench-ledger"):
        rate(made, "users", 0)  # so that processes and connections are warm
        for number in range(pairs):
            alone, beside = rate(made, "users", 0), 0.0
            with clicking(port, cases):
                beside = rate(made, "users", 0)
            ratios.append(beside / alone)
            print(f"pair {number + 1}: {alone:.0f} runs/s alone, {beside:.0f} beside {USERS} users", flush=True)
    print(f"runs beside {USERS} users, as a ratio: {meter.spread(ratios)} (goal 0.95)")
    goals.at_least("Runs beside five users of the HTTP service, compared with none", statistics.median(ratios), 0.95)


def rate(made: Bench, ticks: str, _number: int) -> float:
    """Runs per second, of a batch that is queued before."""
    path = made.ticks / ticks
    done = len(meter.ticks(path))
    began = time.perf_counter()
    made.queue_runs(BATCH)
    harness.wait_for(lambda: len(meter.ticks(path)) >= done + BATCH, within=300)
    return BATCH / (time.perf_counter() - began)


@contextmanager
def clicking(port: int, cases: Mapping[str, Case]) -> Iterator[None]:
    """Users who each ask for one thing after another, with a pause in between."""
    stop = threading.Event()

    def click(first: int) -> None:
        client, names = Client(port), list(cases)
        for number in count(first):
            if stop.wait(THINK_SECONDS):
                return
            cases[names[number % len(names)]].ask(client)

    users = [threading.Thread(target=click, args=(7 * number,)) for number in range(USERS)]
    for user in users:
        user.start()
    try:
        yield
    finally:
        stop.set()
        for user in users:
            user.join(timeout=60)


@contextmanager
def bench(data: Path | None) -> Iterator[Bench]:
    """A bench whose servers keep their data in ``data``, or in a temporary folder."""
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        ticks = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        kept = data if data is not None else folder / "servers"
        # Only so that the filling writes less to the disk.
        postgres = EmbeddedPostgres(kept, settings={"wal_level": "minimal", "max_wal_senders": "0"})
        redis = EmbeddedRedis(kept)
        for server in (postgres, redis):
            stack.callback(server.stop)
            server.start()
        harness.PLUGIN = PLUGIN
        yield Bench(folder, ticks, postgres.url, redis.url)


@contextmanager
def web(made: Bench) -> Iterator[tuple[int, psutil.Process]]:
    """``rota web`` in a process of its own: its port and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environ = {"ROTA_WEB_PORT": str(port), "ROTA_WEB_TOKEN": TOKEN}
    with made.process(made.ticks / "none", "rota", "web", **environ) as process:
        harness.wait_for(lambda: answers(port), within=60)
        yield port, psutil.Process(process.pid)


def answers(port: int) -> bool:
    """Whether the service answers."""
    try:
        return bool(Client(port).get("/health/live"))
    except OSError:
        return False


def give_schedules(made: Bench) -> None:
    """Give a thousand keys a schedule."""
    with loading.using(registry_of(POLL, plugin="bench")), Session(made.engine) as session, session.begin():
        wanted = [KeySchedule(f"account-{number}") for number in range(SCHEDULES)]
        sync_schedules(session, "bench-poll", wanted, most_removed=1.0)


def count_runs(made: Bench) -> None:
    """Count the runs for the statistics of jobs, as the job ``count-runs`` does. Print its time."""
    began = time.perf_counter()
    with Session(made.engine) as session:
        counted = run_counts.count(session, checkpoint=lambda _progress: session.commit())
        session.commit()
    seconds = time.perf_counter() - began
    print(f"counted {counted:,} runs in {seconds:.1f} s: {counted / seconds:,.0f} a second", flush=True)


def facts_of(made: Bench, runs: int) -> Facts:
    """Read what the cases need."""
    with made.engine.connect() as connection:
        dead = connection.exec_driver_sql("SELECT id FROM rota_runs WHERE state = 'dead' ORDER BY id DESC LIMIT 500")
        return Facts(runs, list(dead.scalars()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of cases; also csv and users")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with bench(options.data) as made:
        large_ledger.fill(made.engine, options.runs)
        give_schedules(made)
        count_runs(made)
        facts = facts_of(made, options.runs)
        with web(made) as (port, process):
            measure_all(made, port, process, facts, options)


def measure_all(
    made: Bench, port: int, process: psutil.Process, facts: Facts, options: argparse.Namespace
) -> None:  # fmt: skip
    """Measure what ``--only`` names, or all."""

    def is_wanted(name: str) -> bool:
        return not options.only or any(part in name for part in options.only)

    cases = {**lists(Client(port), facts), **searches(facts), **others(facts)}
    wanted = {name: case for name, case in cases.items() if is_wanted(name)}
    (pid_file,) = (options.data or made.folder / "servers").glob("**/postmaster.pid")
    measure(port, wanted, options.samples, process, psutil.Process(int(pid_file.read_text().split()[0])))
    if is_wanted("csv"):
        export(port, process)
    if is_wanted("users"):
        clicks = {name: case for name, case in cases.items() if not name.startswith("plan")}
        beside_users(made, port, options.pairs, clicks)


if __name__ == "__main__":
    main()
