"""Several threads that do the same thing at the same moment."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: No race takes longer, unless something hangs.
LONGEST_SECONDS = 30


def race(*actions: Callable[[], T]) -> list[T]:
    """Call every action in a thread of its own, all at once; return what they returned, in order.

    What an action raises is raised here.
    """
    barrier = threading.Barrier(len(actions))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(place: int, action: Callable[[], T]) -> None:
        try:
            barrier.wait(LONGEST_SECONDS)
            results[place] = action()
        except BaseException as error:  # noqa: BLE001 — raised again where the race was called for
            errors.append(error)

    threads = [threading.Thread(target=run, args=numbered, daemon=True) for numbered in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST_SECONDS)
    if errors:
        raise errors[0]
    assert len(results) == len(actions), "a thread of the race hangs"
    return [results[place] for place in range(len(actions))]
