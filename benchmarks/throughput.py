"""No-op throughput: bare Dramatiq, the fast lane and ledger runs, interleaved on the same servers.

python -m benchmarks.throughput [--messages 4000] [--repetitions 5]
"""

import argparse
from statistics import median

from benchmarks import goals, meter
from benchmarks.harness import Bench, bench, wait_for

LANES = {"bare": "benchmarks.bare", "fast": "core.main", "ledger": "core.main"}


def measure(made: Bench, lane: str, count: int, repetition: int) -> tuple[float, float]:
    """Messages per second of one lane, and PostgreSQL transactions per message."""
    made.reset()
    ticks = made.ticks / f"{lane}-{repetition}"
    if lane == "ledger":
        made.queue_runs(count)
    else:
        made.queue_messages(f"bench-{lane}", count)
    before = transactions(made)
    with made.worker(ticks, LANES[lane], f"bench-{lane}"):
        wait_for(lambda: len(meter.ticks(ticks)) >= count, within=300)
    return meter.rate(ticks), (transactions(made) - before) / count


def transactions(made: Bench) -> int:
    """Transactions the database has committed so far."""
    with made.engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
        statement = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.exec_driver_sql(statement).scalar_one())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {lane: [] for lane in LANES}
    per_run = []
    with bench() as made:
        for lane in LANES:
            measure(made, lane, options.messages // 4, -1)
        for repetition in range(options.repetitions):
            for lane in LANES:
                rate, commits = measure(made, lane, options.messages, repetition)
                rates[lane].append(rate)
                if lane == "ledger":
                    per_run.append(commits)
    for lane, values in rates.items():
        print(f"{lane:8} {meter.spread(values)} messages/s")
    print(f"transactions per ledger run: {meter.spread(per_run)} (claim and commit; fewer where runs go together)")
    for lane, goal in (("fast", 3), ("ledger", 1)):
        ratios = [rate / bare for rate, bare in zip(rates[lane], rates["bare"], strict=True)]
        print(f"ratio {lane}/bare: {meter.spread(ratios)} (goal {goal:.2f})")
        goals.at_least(f"no-op throughput, {lane} / bare Dramatiq", median(ratios), goal)


if __name__ == "__main__":
    main()
