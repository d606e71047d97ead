"""Records that a benchmark's job ran: it appends a line to a file on a tmpfs, in about a microsecond, the same way for
all task queues.
"""

import os
import statistics
import time
from pathlib import Path

_file: int | None = None


def tick(sent_at: float = 0.0) -> None:
    """Append when this ran, and when it was sent."""
    global _file
    if _file is None:
        _file = os.open(os.environ["BENCH_TICKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(_file, f"{time.time():.6f} {sent_at:.6f}\n".encode())


def ticks(path: Path) -> list[tuple[float, float]]:
    """The (time, time sent) of every tick in ``path``."""
    if not path.exists():
        return []
    lines = path.read_text().rpartition("\n")[0].splitlines()  # the last may be half written
    return [(float(at), float(sent)) for at, sent in (line.split() for line in lines)]


def rate(path: Path) -> float:
    """Ticks per second, from the first to the last."""
    times = sorted(at for at, _ in ticks(path))
    return (len(times) - 1) / (times[-1] - times[0])


def spread(values: list[float]) -> str:
    """``median [least-most]``."""
    return f"{statistics.median(values):.4g} [{min(values):.4g}-{max(values):.4g}]"


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
