"""Makes the application of another task queue enqueue jobs, or send them one at a time: ``producer celery queue 4000``.

It runs in the peer's own environment, which has neither Rota nor its libraries.
"""

import importlib
import random
import sys
import time
from collections.abc import Callable

Send = Callable[[float], object]


def sample(send: Send, count: int) -> None:
    """Send the time now and then, to workers that idle."""
    dice = random.Random(1)
    for _ in range(count):
        time.sleep(dice.uniform(0.3, 0.8))
        send(time.time())


def queue(send: Send, count: int) -> None:
    """Send many, one after the other."""
    for _ in range(count):
        send(0.0)


if __name__ == "__main__":
    peer, verb, count = sys.argv[1:]
    app = importlib.import_module(f"benchmarks.peers.{peer}_app")
    with app.producing():
        {"sample": sample, "queue": queue}[verb](app.send, int(count))
