"""Runs functions at the same moment in several threads."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: A race that takes longer than this hangs.
LONGEST_SECONDS = 30


def race(*actions: Callable[[], T]) -> list[T]:
    """Call each action in a thread of its own, all at the same moment. Return their results, in order. Raises the error
    of an action.
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
