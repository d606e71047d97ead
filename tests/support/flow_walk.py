"""A random walk through flow control on a real ledger: requests, claims, ends, cancels and deaths in any order.

``Walk`` records the place of each run among the runs of its key, and which runs are at work. It checks each claim and
each end against these records. At last it checks that every run can end.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from sqlalchemy import Connection

from core import Limit, job
from core.dispatcher.turns import RoomKeeper, TurnKeeper
from core.jobs import arguments
from core.ledger import cancels, claims, deadlines, later, processes, room, runs, shares, subjects, turns, unconnected
from core.ledger.claims import Verdict
from core.ledger.leases import Lease
from core.ledger.models import State
from core.ledger.runs import Failure
from core.ledger.turns import Turn
from core.worker.claiming import limits_of
from tests.faults.flow_rules import too_many
from tests.support.ledger import Ledger

#: The limit is smaller than the number of keys, so that it is often full.
AT_ONCE, MOST = 1, 2
KEYS = "abc"
MINUTE = timedelta(minutes=1)


@job("work", overlap="wait", limits=[Limit("host:{host}", at_once=AT_ONCE), Limit("pace", most=MOST, per=MINUTE)])
def here(run: Any, host: str = "a") -> None:
    """The job as most processes declare it."""


@job("work", overlap="wait", limits=[Limit("host:{host}", at_once=AT_ONCE), Limit("pace", most=MOST, per=MINUTE)])
def elsewhere(run: Any, host: str = "a", also: str = "") -> None:
    """The job as the other processes declare it."""


WAITING = """
    SELECT id, key, due_at, state, expires_at, due_at <= clock_timestamp() AS is_due FROM rota_runs
    WHERE state IN ('queued', 'retrying')
"""
LOSE = "UPDATE rota_runs SET sent_at = NULL WHERE state IN ('queued', 'retrying') AND sent_at < 'infinity'"
STUCK = """
    SELECT id, key, due_at, state, reason, sent_at = 'infinity' AS is_parked, sent_at IS NULL AS is_unsent, waits_for,
           priority FROM rota_runs WHERE state IN ('queued', 'retrying', 'running') ORDER BY key, due_at, id
"""
#: Statements that move all times in the ledger one minute back.
PASS = (
    """
    UPDATE rota_runs SET due_at = due_at - :span, started_at = started_at - :span, expires_at = expires_at - :span,
        later_since = later_since - :span, queued_at = queued_at - :span,
        sent_at = CASE WHEN sent_at < 'infinity' THEN sent_at - :span ELSE sent_at END
    """,
    "UPDATE rota_attempts SET ended_at = ended_at - :span",
    "UPDATE rota_limits SET used_at = used_at - :span, full_at = full_at - :span",
)


@dataclass
class Walk:
    """The walk, and its own records of the runs."""

    ledger: Ledger
    connection: Connection
    #: A function that registers a process with one of the two declarations.
    start: Any
    dice: Random
    alive: list[tuple[Any, Any]] = field(default_factory=list)
    #: The messages on their way. A message may be there twice, and may get lost.
    messages: list[int] = field(default_factory=list)
    at_work: dict[int, Lease] = field(default_factory=dict)
    #: The place of each run among the runs of its key, without the minutes that ``let_pass`` has moved.
    place: dict[int, Any] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    #: The starts of each run with limits, except starts that were undone before the function was called.
    starts: dict[int, list[Any]] = field(default_factory=dict)
    passed: timedelta = timedelta(0)
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.alive = [(self.start(jobs=[declared]), declared) for declared in (here, elsewhere)]
        self.turns, self.rooms = TurnKeeper(), RoomKeeper()

    def go(self, steps: int) -> None:
        """Do ``steps`` random steps."""
        kinds = {
            self.ask: 5, self.deliver: 12, self.end: 9, self.look: 3, self.cancel: 1, self.die: 1, self.lose: 1,
            self.let_pass: 2,
        }  # fmt: skip
        for step in self.dice.choices(list(kinds), list(kinds.values()), k=steps):
            step()

    def finish(self) -> None:
        """End all runs well. Each run takes a few rounds at most."""
        for _ in range(20 * len(self.place)):
            while self.at_work:
                self.end(well=True)
            if not self.ledger.rows(WAITING):
                return self.check_pace()
            self.let_pass()
            self.lose()
            self.look()
            while self.messages:
                self.deliver()
        raise AssertionError(self.told(f"stuck: {self.ledger.rows(STUCK)}"))

    def ask(self) -> None:
        """Request a run."""
        limited = self.dice.choice([{}, {"limits": '{"host:a",pace}', "limits_declared": '{"host:{host}",pace}'}])
        args = self.dice.choice(['{"host": "a"}', '{"host": "a", "also": "b"}'])
        values = {"key": self.dice.choice(KEYS), "priority": self.dice.choice([0, 0, 5]), "args": args}
        if self.dice.random() < 0.15:
            values["expires_at"] = self.now() + self.dice.choice([1, 3]) * MINUTE
        run_id = self.ledger.request(exclusive=True, sent_at=self.now(), **values, **limited)
        self.place[run_id] = self.where(run_id)
        self.messages.append(run_id)
        self.say("ask", run_id, values["key"])

    def deliver(self) -> None:
        """Give a message to a process, which claims the run."""
        if not self.messages:
            return
        at = self.dice.randrange(len(self.messages))
        run_id = self.messages[at] if self.dice.random() < 0.1 and self.place else self.messages.pop(at)
        process, declared = self.dice.choice(self.alive)
        verdict, lease = claims.claim(
            self.connection, run_id, job="work", process_id=process.id, worker="test:1",
            form=arguments.form(declared), gives_way=False, limits=lambda args: limits_of(declared, args),
        )  # fmt: skip
        self.say("deliver", run_id, verdict)
        if lease is not None:
            self.started(run_id, lease, declared)
        elif verdict in (Verdict.WAITING, Verdict.LIMITED) and self.dice.random() < 0.8:
            self.send(turns.wake(self.connection, (), [run_id], carried=True))
            self.send(room.wake(self.connection, {}, [run_id], carried=True))

    def started(self, run_id: int, lease: Lease, declared: Any) -> None:
        """Check that the run was allowed to start. If its arguments do not fit, release it at once."""
        assert run_id not in self.cancelled, self.told(f"{run_id} was cancelled")
        row = self.ledger.run(run_id)
        beside = [other for other in self.at_work if self.ledger.run(other).key == row.key]
        before = [
            other.id
            for other in self.ledger.rows(WAITING)
            if other.key == row.key and other.is_due and self.place[other.id] < self.place[run_id]
        ]
        assert not beside, self.told(f"{run_id} has started beside {beside}")
        assert not before, self.told(f"{run_id} has started before {before}")
        limited = [other for other in (*self.at_work, run_id) if self.ledger.run(other).limits]
        assert len(limited) <= AT_ONCE, self.told(f"{limited} are at work")
        if lease.limits:
            self.starts.setdefault(run_id, []).append(self.now() + self.passed)
        if "also" in lease.args and declared is here and claims.refuse(self.connection, lease, arguments.form(here)):
            self.say("refuse", run_id)
            self.undo(run_id, lease)
            self.kept(run_id)
        else:
            self.at_work[run_id] = lease

    def end(self, *, well: bool = False) -> None:
        """End an attempt in a random way."""
        if not self.at_work:
            return
        run_id = self.dice.choice(sorted(self.at_work))
        lease, row = self.at_work.pop(run_id), self.ledger.run(run_id)
        how = "succeed" if well else self.dice.choice(["succeed", "succeed", *HOW])
        self.say(how, run_id)
        if run_id in self.cancelled:
            assert runs.succeed(self.connection, lease, None) is None, self.told(f"{run_id} has committed")
            assert cancels.end(self.connection, lease) is not None
        elif how == "succeed":
            assert runs.succeed(self.connection, lease, None) is not None
        elif how == "hand back" and lease.attempt > 1:
            self.at_work[run_id] = lease
            return
        else:
            HOW[how](self.connection, lease)
        if how == "hand back" and run_id not in self.cancelled:
            self.undo(run_id, lease)
        if how in ("fail", "later"):
            self.place[run_id] = self.where(run_id)
        self.kept(run_id)
        if self.dice.random() < 0.8:
            self.send(turns.wake(self.connection, [Turn("work", row.key)], carried=True))
            self.send(room.wake(self.connection, dict.fromkeys(lease.limits or (), 1), carried=True))

    def look(self) -> None:
        """Make a pass of the dispatcher."""
        deadlines.expire(self.connection)
        self.turns.look(self.connection)
        self.rooms.look(self.connection, ["work"])
        for priority in (5, 0):
            due = shares.Due(priority, ["work"])
            if priority:
                self.send(shares.take_urgent(self.connection, "default", due, batch=100))
            else:
                self.send(shares.take(self.connection, "default", ["work"], shares.Turns(), batch=100))

    def cancel(self) -> None:
        """Cancel a waiting or running run."""
        found = [*self.at_work, *(row.id for row in self.ledger.rows(WAITING))]
        if found:
            run_id = self.dice.choice(sorted(found))
            cancels.cancel(self.connection, [run_id], by="ann")
            self.cancelled.add(run_id)
            self.say("cancel", run_id)

    def die(self) -> None:
        """Let a process die, and start another one."""
        at = self.dice.randrange(len(self.alive))
        process, declared = self.alive[at]
        process.expire(self.ledger.engine)
        processes.end_dead(self.connection)
        processes.recover(self.connection, 1000)
        self.alive[at] = (self.start(jobs=[declared]), declared)
        for run_id in [run_id for run_id, lease in self.at_work.items() if lease.process_id == process.id]:
            del self.at_work[run_id]
            self.kept(run_id)
        self.say("die", process.id)

    def lose(self) -> None:
        """Lose all messages, and let the dispatcher know."""
        self.messages.clear()
        self.ledger.do(LOSE)
        self.say("lose")

    def let_pass(self) -> None:
        """Let a minute pass."""
        for statement in PASS:
            self.ledger.do(statement, span=MINUTE)
        self.passed += MINUTE
        self.say("a minute passes")

    def undo(self, run_id: int, lease: Lease) -> None:
        """Remove a start that was undone from the records."""
        if lease.limits:
            self.starts[run_id].pop()

    def check_pace(self) -> None:
        """Check that in no span more runs have started than the limit allows."""
        starts = sorted(at for each in self.starts.values() for at in each)
        assert not list(too_many("work", starts, MOST, MINUTE.total_seconds())), self.told(f"too many starts: {starts}")

    def kept(self, run_id: int) -> None:
        """Check that a run that waits again has kept its place."""
        if self.ledger.run(run_id).state in ("queued", "retrying"):
            assert self.where(run_id) == self.place[run_id], self.told(f"{run_id} has lost its place")

    def where(self, run_id: int) -> Any:
        """Return the present place of a run."""
        return self.ledger.run(run_id).due_at + self.passed, run_id

    def now(self) -> Any:
        """Return the time by the database's clock."""
        return self.ledger.value("SELECT clock_timestamp()")

    def send(self, outgoing: Any) -> None:
        """Add messages to those on their way."""
        self.messages += [each.run_id for each in outgoing]

    def say(self, *words: Any) -> None:
        """Record a step."""
        self.story.append(" ".join(map(str, words)))

    def told(self, what: str) -> str:
        """Return a message with the last steps and ``what``."""
        return "\n".join([*self.story[-60:], what])


#: The ways in which an attempt may end without success.
HOW = {
    "fail": lambda on, lease: runs.fail(on, lease, Failure(State.RETRYING, "error", "boom", MINUTE)),
    "fail at once": lambda on, lease: runs.fail(on, lease, Failure(State.RETRYING, "error", "boom")),
    "later": lambda on, lease: later.postpone(on, lease, at=None, after=MINUTE, error="not now"),
    "no connection": lambda on, lease: unconnected.release(on, lease, "sorry"),
    "hand back": lambda on, lease: subjects.hand_back(on, lease, "table away"),
}
