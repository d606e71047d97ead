"""The checker of ``tests/faults`` finds each planted bug in a short round of real processes, and none without one."""

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from tests.faults import campaign, report
from tests.faults.campaign import SHORT, Round
from tests.faults.checker import check
from tests.faults.planted import CROWDED, PLANTS, REFUSED, STALLED
from tests.faults.world import Servers, servers

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

#: One of each that some plant needs: a dead process, some that wake up late, two that fire slots, lost messages.
FAULTS = [
    ("worker killed", 2.5, 0, 0.0),
    ("paused past its lease", 3.5, 1, 6.5),
    ("paused past its lease", 5.0, 2, 6.5),
    ("two dispatchers", 7.0, 0, 5.0),
    *(("Redis wiped", at, None, 0.0) for at in (4.5, 6.0, 7.5, 9.0)),
]
#: So that every worker is at work on several at any time, half of which hold no transaction.
REQUESTS = {"nap": 10, "keyed": 5, "flaky": 4, "sweep": 3, "free": 2, "untidy": 4, "fork": 2, "light": 6, "refused": 1}


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    """Servers for all rounds of this file."""
    with servers() as started:
        yield started


def violations_of(
    running: Servers, plant: str | None, faults: Sequence[tuple[str, float, int | None, float]] = FAULTS
) -> Counter[str]:
    """The kinds of violation that are found in a round with that plant; their history is printed."""
    settle = 60 if plant is None else 30  # with a plant, something may never end
    asked = Round(
        seed=1,
        seconds=12,
        settings=SHORT,
        plant=plant,
        faults=(plant and PLANTS[plant].faults) or faults,
        per_second=12,
        requests=REQUESTS,
        settle_seconds=settle,
    )
    with campaign.staged(running, asked) as (_, history):
        found = check(history)
    print("\n".join(report.story(history, found)))  # noqa: T201 — pytest shows it with a failure
    return Counter(violation.kind for violation in found)


def test_without_a_planted_bug_there_is_no_violation(running):
    assert violations_of(running, None) == {}


@pytest.mark.parametrize("fault", [REFUSED, STALLED, CROWDED], ids=lambda fault: fault[0])
def test_a_fault_that_only_delays_leads_to_no_violation(running, fault):
    assert violations_of(running, None, [fault]) == {}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(running, name):
    found = violations_of(running, name)

    assert found.keys() & PLANTS[name].found_as, found
