"""The checker of ``tests/faults`` finds each planted bug in a short round with real processes, and no violation without
a bug.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.faults import campaign, report
from tests.faults.campaign import SHORT, Round
from tests.faults.checker import check
from tests.faults.flow_plants import FLOW_PLANTS, SUBJECTS_AWAY, TOGETHER
from tests.faults.plant import Timed
from tests.faults.planted import CROWDED, PLANTS, REFUSED, STALLED
from tests.faults.world import Servers, servers

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

#: One fault of each kind that a planted bug needs: a dead process, processes that wake up late, two processes that fire
#: slots, and lost messages.
FAULTS = [
    ("worker killed", 2.5, 0, 0.0),
    ("paused past its lease", 3.5, 1, 6.5),
    ("paused past its lease", 5.0, 2, 6.5),
    ("two dispatchers", 7.0, 0, 5.0),
    *(("Redis wiped", at, None, 0.0) for at in (4.5, 6.0, 7.5, 9.0)),
]
#: So each worker works on several runs at any time, and half of these runs hold no transaction.
REQUESTS = {"nap": 10, "keyed": 5, "flaky": 4, "sweep": 3, "free": 2, "untidy": 4, "fork": 2, "light": 6, "refused": 1}


#: Requests for jobs with flow control, so that runs of one key wait for each other, and some are cancelled.
FLOW = {
    "turn": 5,
    "held": 5,
    "later": 3,
    "brief": 3,
    "picky": 3,
    "about": 4,
    "asker": 6,
    "canceller": 5,
    "keyed": 2,
    "paced": 4,
}
#: The usual faults if a planted bug needs faults. Otherwise few or none, so that enough runs meet the bug.
FLOW_FAULTS: dict[str, list[Timed]] = {
    "turns": FAULTS,
    "requests": [FAULTS[0], SUBJECTS_AWAY, REFUSED],
    "races": [],
    "wakes": [],
}
#: Requests whose runs meet each other most often.
RACES = {"held": 6, "asker": 8, "canceller": 5, "limited": 4}


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    """Servers for all rounds of this file."""
    with servers() as started:
        yield started


def violations_of(
    running: Servers,
    plant: str | None,
    faults: Sequence[Timed] = FAULTS,
    requests: Mapping[str, int] = REQUESTS,
    mode: str = "auto",
) -> Counter[str]:
    """Return the kinds of violations that a round with this planted bug has. Their history is printed."""
    settle = 60 if plant is None else 30  # with a planted bug, a run may never end
    asked = Round(
        seed=1,
        seconds=12,
        settings={**SHORT, "SCHEDULER_MODE": mode},
        plant=plant,
        faults=faults,
        per_second=12,
        requests=requests,
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


def test_without_a_planted_bug_flow_control_has_no_violation_in_local_mode(running):
    faults = [SUBJECTS_AWAY, *(fault for fault in FAULTS if fault[0] != "Redis wiped")]

    assert violations_of(running, None, faults, FLOW, mode="local") == {}


@pytest.mark.parametrize("name", sorted(PLANTS.keys() - {plant.name for plant in FLOW_PLANTS}))
def test_a_planted_bug_is_found(running, name):
    found = violations_of(running, name, PLANTS[name].faults or FAULTS)

    assert found.keys() & PLANTS[name].found_as, found


@pytest.mark.parametrize("group", TOGETHER)
def test_each_planted_bug_of_flow_control_is_found(running, group):
    """One round has several bugs in different parts, since a round takes long."""
    found = violations_of(running, ",".join(TOGETHER[group]), FLOW_FAULTS[group], RACES if group == "races" else FLOW)

    assert [name for name in TOGETHER[group] if not found.keys() & PLANTS[name].found_as] == [], found


def test_each_rule_of_flow_control_has_a_planted_bug():
    assert sorted(name for group in TOGETHER.values() for name in group) == sorted(plant.name for plant in FLOW_PLANTS)
