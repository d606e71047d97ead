"""A round: draws faults and their times from a seed, injects them into a world, and collects the results.

The same seed draws the same faults, targets, times and requests. Their effects depend on the machine.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

from sqlalchemy import text

from tests.faults import workload
from tests.faults.checker import missing
from tests.faults.client import Client
from tests.faults.faults import FAULTS, Fault, possible
from tests.faults.history import (
    Cancel,
    Change,
    Effect,
    FaultEvent,
    History,
    KeptAttempt,
    Presence,
    RunRow,
    Transition,
)
from tests.faults.world import SCHEDULERS, WORKERS, Member, Servers, World, now, world
from tests.support.eventually import eventually

#: The short form has a short lease, so that everything takes less time. The long form has the defaults.
SHORT = {"ROTA_LEASE_SECONDS": "4", "ROTA_HEARTBEAT_SECONDS": "1", "ROTA_ORPHAN_SECONDS": "600"}
LONG = {"ROTA_LEASE_SECONDS": "15", "ROTA_HEARTBEAT_SECONDS": "3", "ROTA_ORPHAN_SECONDS": "600"}
#: The time in seconds in which one round injects faults, and the settings of the round.
FORMS = {"short": (45.0, SHORT), "long": (180.0, LONG)}
MAX_CRASHES = 3
#: The members of a world that each kind of fault may hit. The workers come first.
TARGETS: dict[str, Sequence[int | None]] = {
    "worker": range(WORKERS),
    "scheduler": range(WORKERS, WORKERS + SCHEDULERS),
    "any": range(WORKERS + SCHEDULERS),
    "postgres": [None],
    "redis": [None],
}
#: The members in local mode, which has neither schedulers nor Redis.
LOCAL_TARGETS = {**TARGETS, "any": range(WORKERS)}
#: One of this many rounds is in local mode.
LOCAL_ONCE_IN = 3
#: This share of the faults begins ``CROWD`` seconds after the fault before, which may still be in force. Each other
#: fault begins ``CALM`` seconds after the end of the fault before, so that the recoveries can be told apart.
CROWDED = 0.6
CROWD, CALM = (0.3, 3.0), (6.0, 9.0)
#: After the last fault is healed, everything must end within this many leases and seconds: a handover at the end of a
#: lease, three crashes of a poisoned run, the retries, and the runs that are isolated one by one.
SETTLE_LEASES, SETTLE_SECONDS = 2, 90
#: If a worker dies while it is not registered, Dramatiq's own maintenance requeues its messages: after a minute without
#: a heartbeat, at the next of its checks every 15 s.
LETTERS_SECONDS = 60 + 15 + 10

UNFINISHED = """
    SELECT count(*) AS n FROM rota_runs
    WHERE state IN ('queued', 'running', 'retrying') AND coalesce(slot, queued_at) <= :until
"""


class GivenUp(Exception):
    """The round was given up."""


@dataclass(frozen=True)
class Planned:
    """A fault that will be injected."""

    at_seconds: float
    fault: Fault
    #: The index of the member that the fault hits; None for a server.
    member: int | None
    lasts_seconds: float

    @property
    def where(self) -> str:
        """The server or the member that the fault hits."""
        return self.fault.on if self.member is None else str(self.member)


@dataclass(frozen=True)
class Round:
    """The parameters of a round."""

    seed: int
    seconds: float
    settings: Mapping[str, str]
    plant: str | None = None
    #: The faults to inject instead of faults drawn from the seed: name, start, member, length.
    faults: Sequence[tuple[str, float, int | None, float]] | None = None
    per_second: float = 8
    requests: Mapping[str, int] = field(default_factory=lambda: workload.REQUESTS)
    #: After this time everything must have ended; None: the time follows from the lease.
    settle_seconds: float | None = None

    @property
    def targets(self) -> Mapping[str, Sequence[int | None]]:
        """The members that each kind of fault may hit."""
        return LOCAL_TARGETS if self.settings.get("SCHEDULER_MODE") == "local" else TARGETS

    @property
    def lease_seconds(self) -> float:
        return float(self.settings["ROTA_LEASE_SECONDS"])

    def plan(self, offered: Sequence[Fault], dice: Random) -> list[Planned]:
        """Return the faults in the order of their times."""
        if self.faults is not None:
            return [Planned(at, FAULTS[name], member, lasts) for name, at, member, lasts in self.faults]
        return draw(offered, dice, self.seconds, self.lease_seconds, self.targets)

    def settle(self) -> float:
        """Return how long to wait until everything has ended."""
        return self.settle_seconds or SETTLE_SECONDS + SETTLE_LEASES * self.lease_seconds


def of_form(form: str, seed: int, plant: str | None = None) -> Round:
    """Return a round of a form. Some seeds give a round in local mode."""
    seconds, settings = FORMS[form]
    mode = "auto" if seed % LOCAL_ONCE_IN else "local"
    return Round(seed, seconds, {**settings, "SCHEDULER_MODE": mode}, plant)


def draw(
    offered: Sequence[Fault],
    dice: Random,
    seconds: float,
    lease_seconds: float,
    targets: Mapping[str, Sequence[int | None]] = TARGETS,
) -> list[Planned]:
    """Draw faults for a time. Two faults never hit the same server or member at the same time."""
    plan: list[Planned] = []
    free_at: dict[str, float] = {}
    shuffled: list[Fault] = []
    at = dice.uniform(0.5, 2)
    while at < seconds:
        shuffled = shuffled or dice.sample(list(offered), len(offered))  # each kind once before any kind comes again
        chosen = shuffled.pop()
        lasts, member = chosen.seconds(dice, lease_seconds), dice.choice(targets[chosen.on])
        where = chosen.on if member is None else str(member)
        begins = max(at, free_at.get(where, 0))
        if begins + lasts < seconds:
            plan.append(Planned(begins, chosen, member, lasts))
            free_at[where] = begins + lasts + 1
        at += dice.uniform(*CROWD) if dice.random() < CROWDED else lasts + dice.uniform(*CALM)
    return sorted(plan, key=lambda planned: planned.at_seconds)


@contextmanager
def staged(servers: Servers, asked: Round) -> Iterator[tuple[World, History]]:
    """Run a round in a new world, wait until it has settled, and yield the world and its history. Then remove the
    world.
    """
    dice = Random(asked.seed)
    with world(servers, asked.settings, asked.plant) as place:
        place.populate()
        since = accounted_since(place)
        client = Client(place, Random(asked.seed + 1), asked.per_second, asked.requests)
        client.start()
        planned = asked.plan(possible(place), dice)
        if not planned:
            wait_until(place, now() + timedelta(seconds=asked.seconds))
        events = inject_all(place, planned, dice)
        client.stop()
        place.heal()
        until = database_now(place)
        settle(place, until, asked.settle())
        settle_letters(place, client, events)
        place.stop_members()
        yield place, gather(place, asked, client, events, since, until)


def inject_all(place: World, plan: Sequence[Planned], dice: Random) -> list[FaultEvent]:
    """Inject each planned fault at its time. Return when all faults are healed."""
    began = now()
    seeds = [dice.getrandbits(32) for _ in plan]
    # On a slow machine, a fault of a server may not be healed yet when the next fault of this server is due.
    turns: dict[str, threading.Lock] = defaultdict(threading.Lock)
    with ThreadPoolExecutor(len(plan) or 1) as pool:
        injected = [
            pool.submit(inject, place, planned, Random(seed), began, turns[planned.where])
            for planned, seed in zip(plan, seeds, strict=True)
        ]
        try:
            return [fault.result() for fault in injected]
        except BaseException:
            place.given_up.set()  # so that no other fault waits for its time
            raise


def inject(place: World, planned: Planned, dice: Random, began: datetime, turn: threading.Lock) -> FaultEvent:
    """Inject a fault at its time, and heal it when its time is over. If another fault of the same server or member is
    still in force, wait until it is healed.
    """
    wait_until(place, began + timedelta(seconds=planned.at_seconds))
    with turn:
        member = target(place, planned)
        at = now()
        with planned.fault.injected(place, member, dice) as pids:
            wait_until(place, now() + timedelta(seconds=planned.lasts_seconds))
    lease = float(place.settings["ROTA_LEASE_SECONDS"])
    return FaultEvent(
        planned.fault.name,
        at,
        now(),
        member.name if member else planned.fault.on,
        pids,
        planned.fault.counts_from_heal,
        planned.fault.bound_seconds(lease),
        planned.fault.wipes_redis,
    )


def target(place: World, planned: Planned) -> Member | None:
    """Return the member that the fault hits, or None for a server."""
    return None if planned.member is None else place.members[planned.member]


def wait_until(place: World, moment: datetime) -> None:
    """Wait until a time. Raises GivenUp if the round is given up."""
    if place.given_up.wait(max((moment - now()).total_seconds(), 0)):
        raise GivenUp


def accounted_since(place: World) -> datetime:
    """Return the first full second from which on the ledger accounts for every slot."""
    marks = "SELECT count(*) AS n FROM rota_schedules WHERE job = ANY(:jobs)"
    eventually(lambda: place.fleet.rows(marks, jobs=list(workload.PERIODS))[0].n == len(workload.PERIODS), within=30)
    return database_now(place).replace(microsecond=0) + timedelta(seconds=1)


def database_now(place: World) -> datetime:
    """Return the time by PostgreSQL's clock."""
    place.fleet.engine.dispose()  # faults may have ended its connections
    return place.fleet.now()


def settle(place: World, until: datetime, within: float) -> None:
    """Wait until all runs that were due before ``until`` have ended. The checker reports runs that have not ended in
    time.
    """
    with suppress(AssertionError):
        eventually(lambda: place.fleet.rows(UNFINISHED, until=until)[0].n == 0, within=within, every=0.3)


def settle_letters(place: World, client: Client, events: list[FaultEvent]) -> None:
    """Wait until every message of the fast lane that Redis has not lost was received."""

    def all_have_come() -> bool:
        received = [row.number for row in place.fleet.rows(RECEIVED)]
        return not missing(client.letters, received, events)

    with suppress(AssertionError):
        eventually(all_have_come, within=LETTERS_SECONDS, every=0.3)


def gather(
    place: World, asked: Round, client: Client, events: list[FaultEvent], since: datetime, until: datetime
) -> History:
    """Return the history: all that PostgreSQL, the client and the supervisor have recorded."""
    place.fleet.engine.dispose()
    with place.connection() as connection:
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ")

        def rows(query: str, **parameters: Any) -> Sequence[Any]:
            return connection.execute(text(query), parameters).all()

        jobs = list(workload.SPECS)
        return History(
            seed=asked.seed,
            specs=workload.SPECS,
            since=since,
            until=until,
            lease_seconds=asked.lease_seconds,
            max_crashes=MAX_CRASHES,
            runs=[RunRow(*row) for row in rows(RUNS, jobs=jobs)],
            transitions=[Transition(*row) for row in rows(TRANSITIONS, jobs=jobs)],
            effects=[Effect(*row) for row in rows(EFFECTS)],
            faults=sorted(events, key=lambda event: event.at),
            processes=list(place.events),
            acknowledged=list(client.acknowledged),
            requested=[row.run_id for row in rows("SELECT run_id FROM fault_requests")],
            letters=list(client.letters),
            received=[row.number for row in rows(RECEIVED)],
            plant=asked.plant,
            cancels=[Cancel(*row) for row in rows(CANCELS)],
            presences=[Presence(*row) for row in rows(PRESENCES)],
            changes=[Change(*row) for row in rows(CHANGES)],
            kept=[KeptAttempt(*row) for row in rows(KEPT, jobs=jobs)],
            uses=[(row.run_id, row.at_work) for row in rows("SELECT run_id, at_work FROM fault_uses ORDER BY id")],
            removed={row.id: row.at for row in rows(REMOVED)},
            mode=asked.settings.get("SCHEDULER_MODE", "auto"),
        )


RECEIVED = "SELECT number FROM fault_letters"
RUNS = """
    SELECT id, job, key, slot, state, reason, attempt, failures, crashes, queued_at, finished_at, error, args,
           expires_at, coalesce(laters, 0), limits
    FROM rota_runs WHERE job = ANY(:jobs) ORDER BY id
"""
TRANSITIONS = """
    SELECT run_id, before, after, reason, attempt, failures, crashes, token, process_id, worker, due_at, at,
           CAST(CAST(xid AS text) AS bigint), error, pg_xact_commit_timestamp(xmin)
    FROM fault_transitions WHERE run_id IN (SELECT id FROM rota_runs WHERE job = ANY(:jobs)) ORDER BY id
"""
EFFECTS = """
    SELECT run_id, kind, step, token, attempt, began_at, at, pg_xact_commit_timestamp(xmin),
           CAST(CAST(xid AS text) AS bigint), found
    FROM fault_effects ORDER BY id
"""
CANCELS = "SELECT run_id, found, pg_xact_commit_timestamp(xmin) FROM fault_cancels ORDER BY id"
PRESENCES = "SELECT run_id, token, entered_at, left_at FROM fault_presences ORDER BY id"
CHANGES = "SELECT run_id, id, seen_by IS NOT NULL FROM fault_changes ORDER BY id"
KEPT = """
    SELECT run_id, attempt, outcome FROM rota_attempts
    WHERE run_id IN (SELECT id FROM rota_runs WHERE job = ANY(:jobs)) ORDER BY run_id, attempt
"""
REMOVED = "SELECT id, pg_xact_commit_timestamp(xmin) AS at FROM fault_removed"
