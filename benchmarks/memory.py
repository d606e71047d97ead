"""Measures the memory of an idle worker process with eight threads, compared with bare Dramatiq.

python -m benchmarks.memory [--repetitions 5]
"""

import argparse
import time

import psutil

from benchmarks import meter
from benchmarks.harness import Bench, bench

MIB = 1024 * 1024


def resident(made: Bench, module: str, queue: str) -> float:
    """Mean MiB that belong to one worker process alone (USS), once it is ready."""
    with made.worker(made.ticks / queue, module, queue) as process:
        time.sleep(6)
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if child.num_threads() > 8]
        return float(sum(worker.memory_full_info().uss for worker in workers) / len(workers) / MIB)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    bare, ours = [], []
    with bench() as made:
        for _ in range(options.repetitions):
            bare.append(resident(made, "benchmarks.bare", "bench-bare"))
            ours.append(resident(made, "core.main", "bench-ledger"))
    print(f"bare Dramatiq: {meter.spread(bare)} MiB a process")
    print(f"rota:          {meter.spread(ours)} MiB a process")
    print(f"ratio rota/bare: {meter.spread([a / b for a, b in zip(ours, bare, strict=True)])}")


if __name__ == "__main__":
    main()
