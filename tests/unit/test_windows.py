"""The window of a queue has as many messages as its workers fetch in a second."""

import pytest

from core.dispatcher.windows import FIRST, GROWTH, LEAST, MOST, URGENT, Window, Windows


def looked(window, *looks):
    """The window after several looks at the queue.

    Each look has the seconds since the one before, the messages sent since then, and those that wait now.
    """
    now = 0.0
    window.look(0, now)
    for seconds, sent, length in looks:
        now += seconds
        window.sent += sent
        window.look(length, now)
    return window


def test_an_unknown_queue_has_the_first_window():
    assert looked(Window()).most == FIRST


def test_it_is_what_workers_fetch_in_a_second():
    assert looked(Window(), (1, 1000, 992)).most == LEAST
    assert looked(Window(), (1, 1000, 900)).most == 100


def test_a_rate_that_changes_is_followed_within_seconds():
    assert 200 <= looked(Window(), *[(0.1, 20, 500)] * 40).most < 250
    assert 2700 < looked(Window(), *[(0.1, 300, 500)] * 40).most <= 3000


def test_a_window_that_was_emptied_grows():
    assert looked(Window(), (0.1, 100, 0)).most == FIRST * GROWTH
    assert looked(Window(most=LEAST), (0.1, LEAST, 0)).most == LEAST / 0.1 * GROWTH


def test_it_stays_within_its_bounds():
    assert looked(Window(), *[(0.1, 10_000, 1)] * 50).most <= MOST
    assert looked(Window(), *[(0.1, 10_000, 0)] * 5).most == MOST
    assert looked(Window(), (0.1, 500, 500), *[(0.1, 0, 500)] * 60).most == LEAST


def test_neither_a_short_nor_a_long_sample_counts():
    assert looked(Window(), (0.01, 1000, 700)).most == FIRST
    assert looked(Window(), (60, 1000, 999)).most == FIRST


class Carrier:
    """Has this many messages, and remembers what it was told."""

    def __init__(self):
        self.lengths = {0: 0, 7: 0}
        self.told = []

    def waiting(self, _queue, priority=0):
        return self.lengths[priority]

    def tell_window(self, _queue, most):
        self.told.append(most)


@pytest.fixture
def carrier():
    return Carrier()


@pytest.fixture
def windows():
    return Windows()


def test_a_window_is_filled_when_half_of_it_is_free(windows, carrier):
    assert windows.room(carrier, "default") == FIRST
    carrier.lengths[0] = FIRST // 2 + 1
    assert windows.room(carrier, "default") == 0
    carrier.lengths[0] = FIRST // 2
    assert windows.room(carrier, "default") == FIRST // 2


def test_it_tells_that_there_was_no_room(windows, carrier):
    windows.room(carrier, "default")
    assert not windows.was_full
    carrier.lengths[0] = FIRST
    windows.room(carrier, "default")
    assert windows.was_full
    windows.begin()
    assert not windows.was_full


def test_urgent_messages_have_a_window_of_their_own(windows, carrier):
    carrier.lengths = {0: FIRST, 7: URGENT - 1}
    assert windows.urgent_room(carrier, "default", 7) == 1
    assert not windows.was_full
    carrier.lengths[7] = URGENT + 1
    assert windows.urgent_room(carrier, "default", 7) == 0
    assert windows.was_full


def test_others_are_told_to_send_nothing_while_more_is_due_and_then_the_window(windows, carrier):
    windows.sent(carrier, "default", 1, has_more=False)
    assert carrier.told == []
    windows.sent(carrier, "default", 500, has_more=True)
    windows.sent(carrier, "default", 500, has_more=True)
    assert carrier.told == [0]
    windows.sent(carrier, "default", 3, has_more=False)
    windows.sent(carrier, "default", 3, has_more=False)
    assert carrier.told == [0, FIRST]
