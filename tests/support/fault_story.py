"""Histories of the fault suite that tests write by hand, step by step."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tests.faults.checker import check
from tests.faults.history import Cancel, Effect, FaultEvent, History, KeptAttempt, RunRow, Spec, Transition

START = datetime(2026, 1, 1, tzinfo=UTC)
SPECS = {
    "tick": Spec("tick", every_seconds=5, exclusive=False, misfire="all"),
    "slot": Spec("slot", every_seconds=5),
    "work": Spec("work"),
    "hopeless": Spec("hopeless", exclusive=False, max_retries=1, may_succeed=False, may_die=True),
    "light": Spec("light", exclusive=False, has_effect=False),
    "refused": Spec("refused", exclusive=False, may_succeed=False, is_refused=True),
    "poison": Spec("poison", exclusive=False, may_succeed=False, is_poison=True),
    "turn": Spec("turn", has_delay=False),
    "steady": Spec("steady", keeps_newest=True),
    "free": Spec("free", exclusive=False),
    "limited": Spec("limited", exclusive=False, at_once=2),
    "paced": Spec("paced", exclusive=False, pace=(2, 10.0)),
}
#: The outcome under which an attempt with each reason is kept.
KEPT = {
    "error": "failed", "retries": "failed", "result": "failed", "no retry": "failed", "later": "later",
    "cancelled": "cancelled", "worker died": "crashed", "crashes": "crashed", "stopped": "released",
    "no connection": "released",
}  # fmt: skip


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


#: The values of a run before its first change.
NO_CHANGE = {"token": None, "worker": None, "due_at": START}


class Story:
    """Writes a history step by step. Each step of a run is a transaction of its own."""

    def __init__(self, **changes) -> None:
        empty = History(
            seed=1, specs={}, since=at(0), until=at(0), lease_seconds=4, max_crashes=3, runs=[], **changes
        )  # fmt: skip
        self.history = replace(empty, specs=SPECS)
        self._xid = 0
        self._token = 0

    def run(
        self,
        job: str = "work",
        *,
        key: str = "",
        slot: float | None = None,
        queued: float = 0,
        due: float = 0,
        **values,
    ) -> int:
        """Queue a run."""
        run_id = len(self.history.runs) + 1
        slot_at = None if slot is None else at(slot)
        self.history.runs.append(RunRow(run_id, job, key, slot_at, "queued", None, 0, 0, 0, at(queued), None, **values))
        self._change(run_id, queued, None, "queued", due_at=at(due))
        return run_id

    def claim(self, run_id: int, second: float, *, pid: int = 1, token: int | None = None) -> None:
        """Claim a run."""
        self._token = token or self._token + 1
        row = self._row(run_id)
        self._update(run_id, attempt=row.attempt + 1)
        self._change(run_id, second, row.state, "running", token=self._token, worker=f"host:{pid}")

    def succeed(self, run_id: int, second: float) -> None:
        """Let a run succeed, with its effect in the same transaction."""
        self.end(run_id, second, "succeeded")
        self.effect(run_id, second, xid=self._xid)

    def fail(
        self,
        run_id: int,
        second: float,
        *,
        state: str = "retrying",
        reason: str = "error",
        error: str = "ValueError",
        due: float | None = None,
    ) -> None:
        """Let an attempt fail."""
        self._update(run_id, failures=self._row(run_id).failures + 1)
        self.end(run_id, second, state, reason, error, due=due)

    def postpone(self, run_id: int, second: float, *, due: float, state: str = "retrying") -> None:
        """Let a run postpone itself."""
        self._update(run_id, laters=self._row(run_id).laters + 1)
        self.end(run_id, second, state, "later", due=due)

    def cancel(self, run_id: int, second: float) -> None:
        """Cancel a running run, which draws another token."""
        self._token += 1
        self.history.cancels.append(Cancel(run_id, self._row(run_id).state, at(second)))
        self._change(run_id, second, "running", "running", token=self._token)

    def note(self, run_id: int, second: float, reason: str) -> None:
        """Record that a waiting run waits for another reason."""
        self._change(run_id, second, self._row(run_id).state, self._row(run_id).state, reason=reason)

    def crash(self, run_id: int, second: float, *, state: str = "retrying", reason: str = "worker died") -> None:
        """Let the process of a run die."""
        self._update(run_id, crashes=self._row(run_id).crashes + 1)
        self.end(run_id, second, state, reason)

    def end(
        self,
        run_id: int,
        second: float,
        state: str,
        reason: str | None = None,
        error: str | None = None,
        *,
        due: float | None = None,
    ) -> None:
        """Change the state of a run. Keep its attempt if the outcome is one that is kept."""
        row = self._row(run_id)
        self._update(run_id, finished_at=None if state in {"queued", "retrying"} else at(second))
        outcome = KEPT.get(reason or "") if state != "succeeded" else "succeeded" if row.attempt > 1 else None
        if row.state == "running" and outcome is not None:
            self.history.kept.append(KeptAttempt(run_id, row.attempt, outcome))
        moved = {} if due is None else {"due_at": at(due)}
        self._change(run_id, second, row.state, state, reason=reason, error=error, **moved)

    def effect(
        self,
        run_id: int,
        second: float,
        *,
        kind: str = "done",
        step: int = 0,
        token: int | None = None,
        xid: int = 0,
        found: str = "",
    ) -> None:
        """Write an effect of a run, by default in a transaction of its own."""
        token = self._token if token is None else token
        began = next(
            (change.at for change in self.history.transitions if change.run_id == run_id and change.token == token),
            at(0),
        )
        self._xid += not xid
        effect = Effect(run_id, kind, step, token, 1, began, at(second), at(second), xid or self._xid, found)
        self.history.effects.append(effect)

    def fault(self, kind: str, begin: float, end: float, **values) -> FaultEvent:
        """Inject a fault."""
        fault = FaultEvent(kind, at(begin), at(end), **values)
        self.history.faults.append(fault)
        return fault

    def kinds(self) -> set[str]:
        """Return the kinds of violation that the checker finds."""
        return {violation.kind for violation in check(self.history)}

    def _row(self, run_id: int) -> RunRow:
        return self.history.runs[run_id - 1]

    def _update(self, run_id: int, **changes) -> None:
        self.history.runs[run_id - 1] = replace(self._row(run_id), **changes)

    def _change(self, run_id: int, second: float, before: str | None, after: str, **values) -> None:
        self._xid += 1
        last = next((change for change in reversed(self.history.transitions) if change.run_id == run_id), None)
        kept = {"token": last.token, "worker": last.worker, "due_at": last.due_at} if last else NO_CHANGE
        values = {"reason": None, **kept, **values}
        self._update(run_id, state=after, reason=values["reason"])
        row = self._row(run_id)
        counted = {"attempt": row.attempt, "failures": row.failures, "crashes": row.crashes}
        change = Transition(run_id, before, after, process_id=1, at=at(second), xid=self._xid, **counted, **values)
        self.history.transitions.append(change)


def worked(story: Story, job: str = "work", *, begin: float = 1, end: float = 2, **options) -> int:
    """Write a run that is claimed once and succeeds. Return its id."""
    run_id = story.run(job, **options)
    story.claim(run_id, begin)
    story.succeed(run_id, end)
    return run_id
