"""Compares Rota with other task queues: no-op throughput, and the time until an idle worker starts a job. Each task
queue has an environment of its own.

In each repetition, all task queues take turns on the same servers, after a warm-up that is not counted. Every ratio
compares two turns of one repetition. Each task queue has two processes with eight threads (prefork: two processes).

python -m benchmarks.against_peers [--messages 4000] [--repetitions 5] [--samples 30] [--only celery-threads,huey]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import latency, meter
from benchmarks.harness import PROCESSES, THREADS, Bench, bench, wait_for
from benchmarks.peers import environment

#: A worker is up within this, in seconds, before idle samples are taken.
SETTLE_SECONDS = 5.0


@dataclass(frozen=True)
class Contender:
    """Something that works on a queue."""

    name: str
    #: Queue this many no-ops.
    queue: Callable[[Bench, int], None]
    #: Send this many, one at a time, to idle workers.
    sample: Callable[[Bench, int, Path], None]
    #: The commands that work on them, with ticks written to the path.
    work: Callable[[Bench, Path], list[tuple[str, ...]]]
    #: Fewer messages for the slow, so that nobody waits for minutes.
    share: float = 1.0


def peer(name: str, env: str, *work: tuple[str, ...], share: float = 1.0) -> Contender:
    """A peer whose application is ``benchmarks/peers/<env>_app.py``; the first word of a command is one of its own."""

    def produce(made: Bench, verb: str, count: int) -> None:
        python = str(environment.commands(env) / "python")
        command = [python, "-m", "benchmarks.peers.producer", env, verb, str(count)]
        subprocess.run(command, env=made.environment(made.ticks), check=True, stdout=subprocess.DEVNULL)

    def commands(_made: Bench, _ticks: Path) -> list[tuple[str, ...]]:
        return [(str(environment.commands(env) / words[0]), *words[1:]) for words in work]

    return Contender(
        name,
        queue=lambda made, count: produce(made, "queue", count),
        sample=lambda made, count, _ticks: produce(made, "sample", count),
        work=commands,
        share=share,
    )


def ours(name: str, module: str) -> Contender:
    """Rota's lane ``name``, or bare Dramatiq."""
    queue = f"bench-{name}"

    def fill(made: Bench, count: int) -> None:
        if name == "ledger":
            made.queue_runs(count)
        else:
            made.queue_messages(queue, count)

    def send(made: Bench) -> None:
        if name == "ledger":
            latency.send_run(made, carried=True)
        else:
            latency.send_message(made, queue)

    def sample(made: Bench, count: int, ticks: Path) -> None:
        for _ in range(count):
            time.sleep(0.5)
            latency.sample(lambda: send(made), ticks)

    options = ("-p", str(PROCESSES), "-t", str(THREADS), "-Q", queue)
    return Contender(name, fill, sample, work=lambda _made, _ticks: [("dramatiq", module, *options)])


CELERY = ("celery", "-A", "benchmarks.peers.celery_app", "worker", "--loglevel=ERROR", "--without-gossip")
CELERY_THREADS = (*CELERY, "--pool=threads", f"--concurrency={THREADS}")
HUEY = ("huey_consumer", "benchmarks.peers.huey_app.huey", f"--workers={THREADS}", "--quiet")
TASKIQ = ("taskiq", "worker", "benchmarks.peers.taskiq_app:broker", f"--workers={PROCESSES}", "--log-level=ERROR")
PROCRASTINATE = ("procrastinate", "--app=benchmarks.peers.procrastinate_app.app", "worker", f"--concurrency={THREADS}")

CONTENDERS = [
    ours("bare", "benchmarks.bare"),
    ours("fast", "core.main"),
    ours("ledger", "core.main"),
    peer("celery-prefork", "celery", (*CELERY, f"--concurrency={PROCESSES}"), share=0.25),
    peer("celery-threads", "celery", (*CELERY_THREADS, "-n=one"), (*CELERY_THREADS, "-n=two"), share=0.5),
    peer("taskiq-stream", "taskiq", TASKIQ),
    peer("huey", "huey", HUEY, HUEY),
    peer("procrastinate", "procrastinate", PROCRASTINATE, PROCRASTINATE, share=0.25),
]


@contextmanager
def at_work(made: Bench, contender: Contender, ticks: Path) -> Iterator[None]:
    """Have its workers at work."""
    with ExitStack() as stack:
        for command in contender.work(made, ticks):
            stack.enter_context(made.process(ticks, *command))
        yield


def throughput(made: Bench, contender: Contender, count: int, turn: str) -> float:
    """Messages per second, all of them queued before the workers start."""
    made.reset()
    ticks, wanted = made.ticks / f"{contender.name}-{turn}", max(int(count * contender.share), 100)
    contender.queue(made, wanted)
    print(f"{contender.name}, {turn}: {wanted} messages", file=sys.stderr)
    with at_work(made, contender, ticks):
        wait_for(lambda: len(meter.ticks(ticks)) >= wanted, within=300)
    return meter.rate(ticks)


def pick_up(made: Bench, contender: Contender, count: int) -> list[float]:
    """Milliseconds from sending to starting, with idle workers."""
    made.reset()
    ticks = made.ticks / f"{contender.name}-idle"
    with at_work(made, contender, ticks):
        time.sleep(SETTLE_SECONDS)
        contender.sample(made, count, ticks)
        wait_for(lambda: len(meter.ticks(ticks)) >= count, within=60)
    return [(at - sent) * 1000 for at, sent in meter.ticks(ticks)[1:]]  # the first one warms up


def report(rates: dict[str, list[float]], idle: dict[str, list[float]]) -> None:
    """Print every contender's figures, and what Rota's lanes are to each in the same repetition."""
    print(f"{'':16} {'messages/s':>24} {'idle p50, p99 ms':>18} {'fast lane is':>22} {'ledger is':>22}")
    for name, values in rates.items():
        p50, p99 = meter.percentile(idle[name], 0.5), meter.percentile(idle[name], 0.99)
        times = [
            meter.spread([mine / theirs for mine, theirs in zip(rates[lane], values, strict=True)])
            for lane in ("fast", "ledger")
        ]
        print(f"{name:16} {meter.spread(values):>24} {p50:9.1f} {p99:8.1f} {times[0]:>22} {times[1]:>22}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--only", default="", help="names of peers, with commas between them; by default all")
    options = parser.parse_args()
    wanted = {"bare", "fast", "ledger", *options.only.split(",")} if options.only else None
    contenders = [found for found in CONTENDERS if wanted is None or found.name in wanted]
    rates: dict[str, list[float]] = {found.name: [] for found in contenders}
    with bench() as made:
        for contender in contenders:
            throughput(made, contender, options.messages // 4, "warm-up")
        for repetition in range(options.repetitions):
            for contender in contenders:
                rates[contender.name].append(throughput(made, contender, options.messages, str(repetition)))
        idle = {found.name: pick_up(made, found, options.samples) for found in contenders}
    report(rates, idle)


if __name__ == "__main__":
    main()
