"""Items that many threads add, and that one thread handles."""

import threading

import pytest

from core.batching import Batcher
from tests.support.eventually import eventually
from tests.support.threads import no_threads_to_give


class Numbers(Batcher[int]):
    """Records the items that it handles, and its thread."""

    name, most_together, gather_seconds, again_seconds, stop_seconds = "numbers", 10, 0.001, 0.01, 10.0

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures_left = failures
        self.dealt: list[int] = []
        self.threads: set[str] = set()
        self.errors: list[Exception] = []

    def deal_with(self, batch):
        if self.failures_left:
            self.failures_left -= 1
            raise ConnectionError("away")
        self.dealt += batch
        self.threads.add(threading.current_thread().name)

    def failed(self, error):
        self.errors.append(error)


@pytest.fixture
def make():
    made = []

    def make(failures=0):
        made.append(Numbers(failures))
        return made[-1]

    yield make
    for numbers in made:
        numbers.stop()


def test_without_a_thread_the_one_that_adds_deals_with_it(make):
    numbers = make()
    with no_threads_to_give():
        numbers.add(1)
        numbers.add(2)

        assert numbers.dealt == [1, 2]
    assert numbers.threads == {threading.current_thread().name}


def test_without_a_thread_what_failed_is_tried_again(make):
    numbers = make(failures=3)
    with no_threads_to_give():
        numbers.add(1)

    assert numbers.dealt == [1]
    assert len(numbers.errors) == 3


def test_once_there_are_threads_again_it_has_one(make, caplog):
    numbers = make()
    with no_threads_to_give():
        numbers.add(1)
        numbers.add(2)
    numbers.add(3)

    eventually(lambda: numbers.dealt == [1, 2, 3], within=5)
    assert "numbers" in numbers.threads
    assert caplog.text.count("thread.not_started") == 1
