"""Measures the no-op throughput of ``rota worker`` with and without recycling, interleaved on the same servers.

python -m benchmarks.recycling [--seconds 30] [--repetitions 5] [--least 10] [--lane ledger]

A process is replaced after a thousand messages, but not before it has lived ``--least`` seconds. The default of
``ROTA_MIN_PROCESS_SECONDS`` is six times as long, and costs a sixth of the measured loss.
"""

import argparse
import time
from pathlib import Path

from benchmarks import meter
from benchmarks.harness import PROCESSES, THREADS, Bench, bench

LANES = ("fast", "ledger")
#: Enough for a lane to be busy to the end; messages per second.
MOST_PER_SECOND = {"fast": 16_000, "ledger": 3_500}
#: The first seconds are the start of the first processes.
WARM_UP_SECONDS = 3.0
BATCH = 10_000


def measure(made: Bench, lane: str, seconds: float, repetition: int, most_messages: int, least: float) -> float:
    """Messages per second of one lane, from three seconds after the first message to the end."""
    made.reset()
    ticks = made.ticks / f"{lane}-{most_messages}-{repetition}"
    fill(made, lane, int(MOST_PER_SECOND[lane] * (seconds + WARM_UP_SECONDS)))
    size = ["--processes", str(PROCESSES), "--threads", str(THREADS), "-Q", f"bench-{lane}"]
    limits = {"ROTA_MAX_MESSAGES_PER_PROCESS": str(most_messages), "ROTA_MIN_PROCESS_SECONDS": str(least)}
    with made.process(ticks, "rota", "worker", *size, **limits):
        while not ticks.exists():
            time.sleep(0.05)
        time.sleep(WARM_UP_SECONDS + seconds)
        return rate(ticks)


def fill(made: Bench, lane: str, count: int) -> None:
    """Have ``count`` messages wait."""
    for _ in range(0, count, BATCH):
        if lane == "ledger":
            made.queue_runs(BATCH)
        else:
            made.queue_messages(f"bench-{lane}", BATCH)


def rate(ticks: Path) -> float:
    """Messages per second after the warm-up."""
    times = sorted(at for at, _ in meter.ticks(ticks))
    counted = [at for at in times if at > times[0] + WARM_UP_SECONDS]
    return len(counted) / (counted[-1] - counted[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--least", type=float, default=10)
    parser.add_argument("--lane", choices=LANES, action="append")
    options = parser.parse_args()
    with bench() as made:
        for lane in options.lane or LANES:
            ratios = []
            for repetition in range(options.repetitions):
                never, often = (
                    measure(made, lane, options.seconds, repetition, most, options.least) for most in (0, 1000)
                )
                ratios.append(often / never)
                print(f"{lane}: {never:.0f} messages/s without recycling, {often:.0f} with", flush=True)
            print(f"ratio {lane} with/without: {meter.spread(ratios)}")


if __name__ == "__main__":
    main()
