"""Compares this release with an older release, in interleaved pairs: CPU per run of Python and of PostgreSQL, and the
rate.

Each release works in its own checkout, virtual environment and servers. CPU per run depends little on other programs of
the machine; the rate depends strongly on them. A ratio is the older release's cost divided by this release's cost: if
it is above 1, this release is faster. The result is the median of the pairs, with the 95 % interval of a bootstrap.
This release counts as slower only if the interval lies below 0.97.

python -m benchmarks.compare OLD_CHECKOUT [--pairs 20] [--lanes fast ledger ...]
"""

import argparse
import json
import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.harness import ROOT

#: How many runs of each lane one measurement has, so that the CPU time, in hundredths of a second, is exact enough.
LANES = {
    "fast": 20_000,
    "ledger": 10_000,
    "ledger-info": 10_000,
    "exclusive": 2_000,
    "session": 10_000,
    "enqueue": 1_500,
    "enqueue_many": 20_000,
}
SLOWER_BELOW = 0.97
RESAMPLES = 2000

Figures = dict[str, float]


class Side:
    """A release, which measures in a process of its own."""

    def __init__(self, checkout: Path) -> None:
        command = [str(checkout / ".venv" / "bin" / "python"), "-P", str(ROOT / "benchmarks" / "side.py")]
        self._process = subprocess.Popen(
            command,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def measure(self, lane: str, count: int) -> Figures:
        """What one measurement of the lane found."""
        assert self._process.stdin is not None
        print(lane, count, file=self._process.stdin, flush=True)
        found: Figures = json.loads(self._answer())
        return {**found, "cpu": found["python"] + found["postgres"]}

    def end(self) -> None:
        """Stop its servers."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()}")
        return answer


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, by bootstrap."""
    dice = random.Random(1)
    medians = sorted(median(dice.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]


def verdict(high: float) -> str:
    """Whether the release is slower, of the upper end of a ratio's interval."""
    return "slower" if high < SLOWER_BELOW else "not slower"


def line(lane: str, figure: str, pairs: Sequence[tuple[Figures, Figures]]) -> str:
    """The two medians of a figure, and the ratio with its interval and verdict."""
    old, new = [old[figure] for old, _ in pairs], [new[figure] for _, new in pairs]
    is_rate = figure == "rate"
    ratios = [now / then if is_rate else then / now for then, now in zip(old, new, strict=True) if now and then]
    low, high = interval(ratios) if ratios else (1.0, 1.0)
    unit = "runs/s" if is_rate else "us/run"
    said = verdict(high) if figure in ("python", "cpu") else ""
    ratio = median(ratios) if ratios else 1.0
    medians = f"{median(old):9.1f} {median(new):9.1f} {unit}"
    return f"{lane:13} {figure:9} {medians}  {ratio:5.3f} [{low:.3f}-{high:.3f}]  {said}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout of the older release, with its .venv")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES))
    options = parser.parse_args()
    old, new = Side(options.old.resolve()), Side(ROOT)
    pairs: dict[str, list[tuple[Figures, Figures]]] = {lane: [] for lane in options.lanes}
    for number in range(options.pairs):
        for lane in options.lanes:
            order = (old, new) if number % 2 == 0 else (new, old)
            found = {side: side.measure(lane, LANES[lane]) for side in order}
            pairs[lane].append((found[old], found[new]))
    for side in (old, new):
        side.end()
    print(f"{'':13} {'':9} {'old':>9} {'new':>9}         ratio, above 1 is faster")
    for lane, measured in pairs.items():
        for figure in ("python", "postgres", "cpu", "rate"):
            print(line(lane, figure, measured))


if __name__ == "__main__":
    main()
