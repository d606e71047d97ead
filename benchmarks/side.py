"""One side of ``benchmarks.compare``: starts servers and workers of the release on whose path it runs, and measures.

It uses only the harness and the public surface, which older releases have too. It reads lines ``lane count`` from its
standard input, and answers each with a line of JSON.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy.orm import Session

from benchmarks import harness
from benchmarks.harness import Bench

#: The jobs on both sides, in place of the release's own.
PLUGIN = """
from sqlalchemy import text

from benchmarks import meter
from core import cron, hookimpl, job


@job("compare-fast", queue="compare-fast", ledger=False)
def fast(run) -> None:
    meter.tick()


@job("compare-ledger", queue="compare-ledger", overlap="allow")
def ledger(run) -> None:
    meter.tick()


#: A schedule that never fires in a comparison: without one, newer releases refuse overlap="skip".
@job("compare-exclusive", queue="compare-exclusive", schedule=cron("0 0 1 1 *"), overlap="skip")
def exclusive(run) -> None:
    meter.tick()


@job("compare-session", queue="compare-session", overlap="allow")
def session(run) -> None:
    run.session.execute(text("INSERT INTO compare_rows (number) VALUES (:number)"), {"number": run.id})
    meter.tick()


@hookimpl
def register_jobs():
    return [fast, ledger, exclusive, session]
"""
BATCH = 500
#: How many are done before the measuring begins, so that processes, connections and pages are warm.
WARM = 200
#: The length of a line that the meter writes.
TICK_BYTES = len("1700000000.000000 0.000000\n")

Figures = dict[str, float]


class Side:
    """Measures one release."""

    def __init__(self, made: Bench) -> None:
        self._made = made
        self._number = 0
        with made.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE compare_rows (number bigint)")
        (pid_file,) = made.folder.glob("servers/**/postmaster.pid")
        self._postgres = psutil.Process(int(pid_file.read_text().split()[0]))
        self._enter_service()

    def measure(self, lane: str, count: int) -> Figures:
        """Microseconds of CPU per run, of the workers or the producer and of PostgreSQL; and runs per second."""
        self._made.reset()
        if lane in ("enqueue", "enqueue_many"):
            ask = self._request if lane == "enqueue" else self._queue
            ask("compare-ledger", WARM)
            return self._costs(lambda: ask("compare-ledger", count), [psutil.Process()], count)
        return self._work(f"compare-{lane.removesuffix('-info')}", count, "INFO" if "-info" in lane else "WARNING")

    def _work(self, job: str, count: int, level: str) -> Figures:
        self._number += 1
        ticks = self._made.ticks / str(self._number)
        command = ["dramatiq", "core.main", "-p", str(harness.PROCESSES), "-t", str(harness.THREADS), "-Q", job]
        with self._made.process(ticks, *command, ROTA_LOG_LEVEL=level) as worker:
            harness.wait_for(lambda: self._count("rota_processes") == harness.PROCESSES, within=60)
            self._queue(job, WARM)
            self._wait_until_done(job, ticks, WARM)
            os.killpg(worker.pid, signal.SIGSTOP)  # so that they find all of it waiting
            self._queue(job, count)

            def work() -> None:
                os.killpg(worker.pid, signal.SIGCONT)
                self._wait_until_done(job, ticks, WARM + count)

            main = psutil.Process(worker.pid)
            figures = self._costs(work, [main, *main.children(recursive=True)], count)
        ticks.unlink()
        return figures

    def _costs(self, what: Callable[[], None], processes: list[psutil.Process], count: int) -> Figures:
        own, postgres, began = cpu(processes), cpu_of_all(self._postgres), time.perf_counter()
        what()
        seconds = time.perf_counter() - began
        own, postgres = cpu(processes) - own, cpu_of_all(self._postgres) - postgres
        return {"python": own / count * 1e6, "postgres": postgres / count * 1e6, "rate": count / seconds}

    def _queue(self, job: str, count: int) -> None:
        from core import enqueue_many, send_many

        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            with Session(self._made.engine) as session, session.begin():
                if job == "compare-fast":
                    send_many(session, job, [{} for _ in numbers])
                else:
                    enqueue_many(session, job, [{} for _ in numbers], keys=[f"{count}-{number}" for number in numbers])

    def _request(self, job: str, count: int) -> None:
        from core import enqueue

        for _ in range(count):
            with Session(self._made.engine) as session, session.begin():
                enqueue(session, job)

    def _wait_until_done(self, job: str, ticks: Path, count: int) -> None:
        harness.wait_for(lambda: ticks.exists() and ticks.stat().st_size >= count * TICK_BYTES, within=300)
        if job != "compare-fast":
            harness.wait_for(lambda: self._count("rota_runs WHERE state = 'succeeded'") >= count, within=300)

    def _count(self, rows: str) -> int:
        with self._made.engine.connect() as connection:
            return int(connection.exec_driver_sql(f"SELECT count(*) FROM {rows}").scalar_one())

    def _enter_service(self) -> None:
        """Attach the carrier of messages here, as every process of the service does."""
        os.environ.update(self._made.environment(self._made.ticks / "none"))
        import core.main  # noqa: F401


def cpu(processes: list[psutil.Process]) -> float:
    """Seconds of CPU that the processes have used."""
    return float(sum(used.user + used.system for used in (process.cpu_times() for process in processes)))


def cpu_of_all(parent: psutil.Process) -> float:
    """Seconds of CPU of a process and its children, also of those that have ended."""
    ended = parent.cpu_times()
    return cpu([parent, *parent.children()]) + float(ended.children_user + ended.children_system)


@contextmanager
def with_plugin(site: Path) -> Iterator[None]:
    """Have the jobs in this process too, before the harness loads any."""
    information = site / "compare-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: compare\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[rota.plugins]\ncompare = compare_plugin\n")
    (site / "compare_plugin.py").write_text(PLUGIN)
    sys.path.insert(0, str(site))
    yield
    sys.path.remove(str(site))


def main() -> None:
    """Answer until the input ends."""
    harness.PLUGIN = PLUGIN
    with tempfile.TemporaryDirectory() as site, with_plugin(Path(site)), harness.bench() as made:
        side = Side(made)
        print("ready", flush=True)
        for line in sys.stdin:
            lane, count = line.split()
            print(json.dumps(side.measure(lane, int(count))), flush=True)


if __name__ == "__main__":
    main()
