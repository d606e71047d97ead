"""The window of a queue has as many messages as its workers fetch in a second."""

import pytest

from core.dispatcher.windows import GROWTH, LEAST, TOO_LONG, Window, Windows
from core.ledger.carrier import MOST_URGENT, MOST_WAITING, Flow


def looked(window, *looks):
    """Check a queue that has 500 messages first once and then for each of ``looks``. Return the window. A look has the
    seconds since the last check, the number of messages fetched meanwhile, and the number of messages that wait.
    """
    now, fetched = 0.0, 0
    window.look(Flow(500, 0), now)
    for seconds, more, waiting in looks:
        now += seconds
        fetched += more
        window.look(Flow(waiting, fetched), now)
    return window


def test_an_unknown_queue_has_the_largest_window():
    assert looked(Window()).most == MOST_WAITING


def test_while_messages_wait_it_follows_what_workers_fetch_in_a_second():
    assert 100 <= looked(Window(), *[(1, 100, 500)] * 20).most < 101
    assert 200 <= looked(Window(), *[(0.1, 20, 500)] * 200).most < 210
    assert 2900 < looked(Window(most=LEAST), *[(0.1, 300, 500)] * 100).most <= 3000


def test_it_stays_while_nothing_waits_and_nothing_is_fetched():
    assert looked(Window(most=50), (1, 500, 0), *[(1, 0, 0)] * 50).most == 500 * GROWTH


def test_it_does_not_become_smaller_if_workers_waited_for_messages():
    window = looked(Window(most=300), (1, 0, 0))
    window.look(Flow(20, 3), 2.0)
    assert window.most == 300


def test_a_window_that_was_emptied_grows():
    assert looked(Window(most=100), (1, 1, 0)).most == 100 * GROWTH
    assert looked(Window(most=LEAST), (0.1, 50, 0)).most == 500 * GROWTH


def test_it_stays_within_its_bounds():
    assert looked(Window(), *[(0.1, 10_000, 1)] * 50).most == MOST_WAITING
    assert looked(Window(), *[(0.1, 10_000, 0)] * 5).most == MOST_WAITING
    assert looked(Window(), *[(1, 0, 500)] * 60).most == LEAST


def test_a_short_sample_does_not_count():
    assert looked(Window(), (0.01, 1000, 700)).most == MOST_WAITING


def test_a_count_that_begins_again_does_not_count():
    window = looked(Window(), (1, 1000, 500))
    before = window.most
    window.look(Flow(500, 10), 2.0)
    assert window.most == before


class Carrier:
    """A carrier whose queues have this many messages, and which records what it is told."""

    def __init__(self):
        self.lengths = {0: 0, 7: 0}
        self.told = []

    def flows(self, queues):
        return [Flow(self.lengths[0], 0) for _ in queues]

    def urgent_waiting(self, _queue, priority):
        return self.lengths[priority]

    def tell_window(self, _queue, most):
        self.told.append(most)


@pytest.fixture
def carrier():
    return Carrier()


@pytest.fixture
def windows():
    return Windows(100)


def test_a_window_is_filled_when_half_of_it_is_free(windows, carrier):
    assert windows.room(carrier, "default") == 100
    carrier.lengths[0] = 51
    assert windows.room(carrier, "default") == 0
    carrier.lengths[0] = 50
    assert windows.room(carrier, "default") == 50


def test_it_tells_that_there_was_no_room(windows, carrier):
    windows.room(carrier, "default")
    assert not windows.was_full
    carrier.lengths[0] = 100
    windows.room(carrier, "default")
    assert windows.was_full
    windows.begin()
    assert not windows.was_full


def test_a_queue_that_is_much_longer_than_its_window_has_too_many_messages(windows, carrier):
    carrier.lengths[0] = 100 * TOO_LONG
    assert windows.excess(carrier, ["default"]) == {}
    carrier.lengths[0] += 1
    assert windows.excess(carrier, ["default"]) == {"default": 100 * (TOO_LONG - 1) + 1}


def test_urgent_messages_have_a_window_of_their_own(windows, carrier):
    carrier.lengths = {0: 100, 7: MOST_URGENT - 1}
    assert windows.urgent_room(carrier, "default", 7) == 1
    assert not windows.was_full
    carrier.lengths[7] = MOST_URGENT + 1
    assert windows.urgent_room(carrier, "default", 7) == 0
    assert windows.was_full


def test_others_are_told_to_send_nothing_while_more_is_due_and_then_the_window(windows, carrier):
    windows.sent(carrier, "default", has_more=False)
    assert carrier.told == []
    windows.sent(carrier, "default", has_more=True)
    windows.sent(carrier, "default", has_more=True)
    assert carrier.told == [0]
    windows.sent(carrier, "default", has_more=False)
    windows.sent(carrier, "default", has_more=False)
    assert carrier.told == [0, 100]
