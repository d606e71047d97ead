"""Explains a run to an operator in sentences: its outcome and the reasons. There is one function for each state."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from core.jobs.job import Job
from core.ledger import cancels, history, pauses, releases, unconnected
from core.ledger.history import Process, Run
from core.ledger.models import State
from core.ledger.orphans import ABSENT
from core.ledger.pauses import Pause
from core.ledger.subjects import MISSING as NO_SUBJECT
from core.ledger.subjects import UNKNOWN as SUBJECT_UNKNOWN
from core.operations import limits
from core.operations.pauses import in_words
from core.operations.redaction import Redactor
from core.operations.runs import cancelled
from core.operations.wording import brief, span

#: A start that is late by no more than this is not mentioned.
PUNCTUAL = timedelta(seconds=2)
#: If no worker finished any run for this long around a slot, there was probably an outage.
QUIET = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Scene:
    """The facts that all explanations use."""

    connection: Connection
    name: str
    key: str
    #: The job; None if no loaded plugin has it.
    job: Job | None
    zone: ZoneInfo
    now: datetime
    alive: list[Process]
    #: Hides the secrets of runs.
    hiding: Redactor
    #: The scopes of the pauses that would pause the job.
    scopes: Collection[str] = ()

    def at(self, instant: datetime) -> str:
        """Return an instant in the job's time zone."""
        return f"{instant.astimezone(self.zone):%Y-%m-%d %H:%M:%S %Z}"

    def pauses_at(self, instant: datetime) -> list[Pause]:
        """Return the pauses that covered the job at an instant."""
        found = pauses.of_scopes(pauses.not_over_at(self.connection, instant), self.scopes)
        return [pause for pause in found if pause.covers(instant)]

    def ago(self, instant: datetime) -> str:
        """Return how long ago an instant was, or how long until it comes."""
        return f"{span(self.now - instant)} ago" if instant <= self.now else f"in {span(instant - self.now)}"


def story(scene: Scene, run: Run) -> list[str]:
    """Explain a run."""
    run = scene.hiding.run(run)
    if run.slot is not None:
        subject = f"Run {run.id} for the slot {scene.at(run.slot)}"
    else:
        subject = f"Run {run.id}, requested {scene.at(run.queued_at)},"
    return STORIES.get(run.state, plainly)(scene, run, subject)


def succeeded(scene: Scene, run: Run, subject: str) -> list[str]:
    took = f"in {span(run.finished_at - run.started_at)} on {run.worker}"
    result = f" Its result: {brief(run.result)}." if run.result is not None else ""
    return [f"{subject} succeeded {took}.{result}", *start(scene, run), *hardships(run)]


def running(scene: Scene, run: Run, subject: str) -> list[str]:
    progress = f" Its progress: {brief(run.progress)}." if run.progress else ""
    sentences = [f"{subject} has been running on {run.worker} since {scene.at(run.started_at)}.{progress}"]
    if mark := cancels.marks(scene.connection, [run.id]).get(run.id):
        said = f"It was cancelled {cancelled(mark)}."
        sentences.append(f"{said} It cannot commit any more, and ends when its function has returned.")
    if run.process_id not in {process.id for process in scene.alive}:
        sentences.append("That worker is no longer alive; a dispatcher will recover the run.")
    return [*sentences, *start(scene, run), *hardships(run), *alarms(scene)]


#: The reasons for which a run waits after a worker has tried to start it.
WAITS_FOR = {
    "overlap": "another run of the same job and key is running or comes first",
    "limit": "one of its limits has no room",
}


def queued(scene: Scene, run: Run, subject: str) -> list[str]:
    if run.reason == "arguments":
        return [
            f"{subject} waits for another release: its arguments did not fit the job on the worker that took it.",
            *alarms(scene),
        ]
    if run.reason == "later":
        return [f"{subject} {postponed(scene, run)}.", *alarms(scene)]
    if run.reason == SUBJECT_UNKNOWN:
        return [f"{subject} waits until its subject can be looked up: {run.error}.", *alarms(scene)]
    if run.reason in WAITS_FOR:
        waits = f"{subject} has been due since {scene.at(run.due_at)} and waits: {WAITS_FOR[run.reason]}."
        return [waits, *rival_sentences(scene, run, scene.now), *limit_sentences(scene, run), *alarms(scene)]
    expires = [f"It is missed if it has not started by {scene.at(run.expires_at)}."] if run.expires_at else []
    if run.due_at > scene.now:
        return [f"{subject} is due at {scene.at(run.due_at)} ({scene.ago(run.due_at)}).", *expires]
    alarm = alarms(scene) or ["Workers are alive: they are busy, or the message was lost and is sent again in seconds."]
    return [f"{subject} has been due since {scene.at(run.due_at)} and has not been started.", *expires, *alarm]


def postponed(scene: Scene, run: Run) -> str:
    """Return the time until which a function has postponed its slot, and the reason."""
    when = f"until {scene.at(run.due_at)}" if run.due_at > scene.now else "and is due now"
    return f"was postponed by its function {when}: {run.error}"


def retrying(scene: Scene, run: Run, subject: str) -> list[str]:
    reasons = {
        "error": f"its attempt {run.attempt} failed: {run.error}",
        "worker died": f"its worker {run.worker} died or sent no heartbeat during attempt {run.attempt}",
        "its worker lost PostgreSQL": f"its worker {run.worker} lost PostgreSQL during attempt {run.attempt}",
        "its worker was stopped": f"its worker {run.worker} was stopped during attempt {run.attempt}",
        "overlap": WAITS_FOR["overlap"],
        "limit": WAITS_FOR["limit"],
        "arguments": "its arguments did not fit the job on the worker that took it, so it waits for another release",
        "adopted": "it was orphaned, and a person has adopted it",
        "by hand": "it was dead, and a person has retried it",
        "later": f"its function has postponed it ({run.error})",
        "no connection": f"PostgreSQL had no connection for its last attempt, which does not count ({run.error})",
    }
    when = f"at {scene.at(run.due_at)}" if run.due_at > scene.now else soon(run)
    because = reasons.get(run.reason or "", run.reason or run.error or "it was released")
    return [
        f"{subject} will be tried again {when}: {because}.",
        *rival_sentences(scene, run, scene.now),
        *limit_sentences(scene, run),
        *retried(scene, run),
        *alarms(scene),
    ]


def soon(run: Run) -> str:
    """Return when a due run is tried again. A run for which PostgreSQL had no connection rests, although it may be
    due.
    """
    return "after a rest of at most a minute" if run.reason == unconnected.REASON else "as soon as a worker takes it"


def dead(scene: Scene, run: Run, subject: str) -> list[str]:
    reasons = {
        "retries": f"all its {run.failures} attempts failed; the last error: {run.error}",
        "no retry": f"its job's retry_on and dead_on allow no retry after this error: {run.error}",
        "crashes": f"{run.crashes} workers died or sent no heartbeat while working on it; the last was {run.worker}",
        "arguments": f"its arguments do not fit the job: {run.error}",
        "no connection": f"for an hour PostgreSQL had no connection for it: {run.error}",
        "result": f"its result cannot be stored: {run.error}",
        "later": f"its function has postponed it for longer than is allowed ({run.error})",
        "cancelled": f"it was cancelled {run.error}; its state before was {run.former_state}",
        "dropped": f"a person has dropped it; its state before was {run.former_state}",
    }
    because = reasons.get(run.reason or "", run.error or run.reason or "no reason is recorded")
    said = f"{subject} has been dead since {scene.at(run.finished_at)}: {because}."
    return [said, *start(scene, run), *hardships(run)]


def skipped(scene: Scene, run: Run, subject: str) -> list[str]:
    if run.reason == "paused":
        found = pause_sentences(scene, run)
        return [f"{subject} was skipped: its {'job' if found or not run.key else 'key'} was paused.", *found]
    reasons = {
        "unscheduled": "the schedule of its key was removed before a worker started it",
        "retrying": "an earlier slot of the same job and key was still being retried (overlap='skip')",
        "superseded": "a newer slot was waiting for the same run (overlap='wait')",
    }
    if run.reason != "overlap":
        because = reasons.get(run.reason or "", run.reason)
        return [f"{subject} was skipped at {scene.at(run.finished_at)}: {because}."]
    sentences = [
        f"{subject} was skipped at {scene.at(run.finished_at)}: another run was still running (overlap='skip')."
    ]
    rivals = rival_sentences(scene, run, run.finished_at)
    return sentences + (
        rivals or ["The ledger no longer shows which run that was, since that run has been tried again."]
    )


def pause_sentences(scene: Scene, run: Run) -> list[str]:
    """Name the pause in which the slot came due, or the pause that began before the slot was started."""
    found = scene.pauses_at(run.slot) or scene.pauses_at(run.finished_at - timedelta.resolution)
    return [f"It was {in_words(pause, scene.at)}." for pause in found]


def rival_sentences(scene: Scene, run: Run, instant: datetime) -> list[str]:
    """Name the runs that were running at ``instant``."""
    if run.reason != "overlap":
        return []
    sentences = []
    for rival in history.rivals(scene.connection, run, instant):
        stood_for = f"for the slot {scene.at(rival.slot)}" if rival.slot else "by request"
        until = f" until {scene.at(rival.finished_at)}" if rival.finished_at else " until now"
        sentences.append(
            f"That was run {rival.id} ({stood_for}), which ran on {rival.worker} from {scene.at(rival.started_at)}"
            f"{until}; it is {rival.state}."
        )
    return sentences


def limit_sentences(scene: Scene, run: Run) -> list[str]:
    """Name the limit that a run waits for, and say how full it is and until when it is closed."""
    use = limits.of_run(scene.connection, run)
    if use is None:
        return []
    sentences = [f"It waits for the limit {limits.in_words(use)}."]
    if use.closed_until is not None:
        why = f": {use.closed_reason}" if use.closed_reason else ""
        sentences.append(f"The limit is closed until {scene.at(use.closed_until)}{why}.")
    return sentences


def missed(scene: Scene, run: Run, subject: str) -> list[str]:
    if run.reason == "expired":
        return [f"{subject} was missed: it had not started by {scene.at(run.expires_at)}, when it expired."]
    grace = f" of {span(scene.job.misfire_grace)}" if scene.job else ""
    cap = f" {scene.job.misfire_cap}" if scene.job else ""
    reasons = {
        "grace": f"no worker started it within its grace{grace}",
        "later": "its function had postponed it past its grace (Later)",
        "overlap": f"it waited for another run of the same job and key until the end of its grace{grace}",
        "limit": f"one of its limits had no room until the end of its grace{grace}",
        "arguments": f"until the end of its grace{grace}, no worker took it whose release its arguments fit",
        "superseded": "no worker started it in time, and misfire='latest' runs only the newest late slot",
        "policy": "no worker started it in time, and misfire='skip' runs no late slot",
        "capped": f"no worker started it in time, and misfire='all' runs only the newest{cap} late slots",
    }
    because = reasons.get(run.reason or "", str(run.reason))
    sentences = [f"{subject} was missed: {because}. This was recorded {scene.at(run.finished_at)}."]
    newer = history.next_served(scene.connection, run) if run.reason == "superseded" else None
    if newer is not None:
        sentences.append(f"Run {newer.id} for the slot {scene.at(newer.slot)} ran instead; it is {newer.state}.")
    return [*sentences, *outage(scene, run.slot)]


def outage(scene: Scene, slot: datetime) -> list[str]:
    """Explain whether workers were away or busy around a slot."""
    around = history.worked_around(scene.connection, slot)
    until = around.after or scene.now
    if around.before is None:
        return [f"No run had finished before this slot; the first run after the slot finished at {scene.at(until)}."]
    if until - around.before < QUIET:
        return ["Workers were finishing other runs at that time: they were busy, or none took runs from its queue."]
    return [
        f"No worker finished any run between {scene.at(around.before)} and {scene.at(until)}: all were away or busy."
    ]


def orphaned(scene: Scene, run: Run, subject: str) -> list[str]:
    reasons = {
        "uninstalled": "its plugin was uninstalled",
        "disabled": "its plugin was disabled by ROTA_DISABLED_PLUGINS",
        "broken": "its plugin was broken",
        "unknown": "no installed plugin had it",
        "absent": "no process of the release that had it was alive",
    }
    if run.reason == NO_SUBJECT:
        end = f"{subject} was orphaned at {scene.at(run.finished_at)}, before its first attempt: {run.error}."
        return [end, f"If the row is there now, `rota orphans adopt {run.job}` adopts it."]
    why = reasons.get(run.reason or "", run.reason)
    because = f", since {why}" if why else ""
    was = f" Before that it was {run.former_state}." if run.former_state else ""
    return [
        f"{subject} was orphaned at {scene.at(run.finished_at)}: no live process had its job{because}.{was}",
        if_it_is_back(run),
    ]


def if_it_is_back(run: Run) -> str:
    if run.reason == ABSENT:
        return "It is adopted automatically when a process with the job is back."
    return f"If the job is back, `rota orphans adopt {run.job}` adopts it."


def plainly(scene: Scene, run: Run, subject: str) -> list[str]:
    return [f"{subject} is {run.state}{f': {run.reason}' if run.reason else ''}."]


def start(scene: Scene, run: Run) -> list[str]:
    """Explain how late the run started."""
    if run.slot is None or run.started_at is None:
        return []
    late = run.started_at - run.slot
    if run.attempt > 1:
        return [f"Its attempt {run.attempt} began {span(late)} after the slot's time."]
    if late <= PUNCTUAL:
        return [f"It started in time, after {span(late)}."]
    inserted = run.queued_at - run.slot
    if inserted > PUNCTUAL:
        unheard = f"no process inserted the slot into the ledger for {span(inserted)}"
        return [f"It started {span(late)} late: {unheard}.", *outage(scene, run.slot)]
    return [f"It started {span(late)} late: it was queued in time, but no worker was free."]


def hardships(run: Run) -> list[str]:
    """Say how many of the run's attempts failed, crashed or postponed the run."""
    parts = []
    if run.failures:
        parts.append(f"{run.failures} ended in an error")
    if run.crashes:
        parts.append(f"{run.crashes} ended because their worker died")
    if run.laters:
        parts.append(f"{run.laters} postponed the run")
    if not parts or run.attempt <= 1:
        return []
    if run.retried_at is None:
        return [f"Of its {run.attempt} attempts, {' and '.join(parts)}."]
    later = run.attempt - (run.retried_after or 0)
    attempts = "1 attempt" if later == 1 else f"{later} attempts"
    return [f"Since a person retried it, it has had {attempts}: {' and '.join(parts)}."]


def retried(scene: Scene, run: Run) -> list[str]:
    """Tell when a person retried the run after it was dead."""
    if run.retried_at is None:
        return []
    before = f"after {run.retried_after} attempts; `rota audit` shows who did it"
    return [f"It was dead, and a person retried it at {scene.at(run.retried_at)}, {before}."]


def alarms(scene: Scene) -> list[str]:
    """Return the reasons why the job cannot run now."""
    if paused := scene.pauses_at(scene.now):
        return [f"Its job is {in_words(pause, scene.at)}. It waits for the end of that pause." for pause in paused]
    if not any(process.kind == "worker" for process in scene.alive):
        return ["No worker is alive now: start one with `dramatiq core.main`."]
    if absence := absent(scene):
        return absence
    if scene.job is not None and not history.serves(scene.alive, scene.job.queue):
        return [f"No live worker takes runs from its queue {scene.job.queue!r}."]
    return []


def absent(scene: Scene) -> list[str]:
    """Explain that no live process has the job, and what happens to the job's runs."""
    if releases.fleet(scene.connection).knows(scene.name):
        return []
    if scene.name in releases.last_had(scene.connection, [scene.name]):
        return ["No live process has its job: its waiting runs are orphaned after ROTA_ORPHAN_SECONDS."]
    return ["No release that ran here has had its job yet. Its runs wait for workers with the job."]


STORIES: dict[str, Callable[[Scene, Run, str], list[str]]] = {
    State.SUCCEEDED: succeeded,
    State.RUNNING: running,
    State.QUEUED: queued,
    State.RETRYING: retrying,
    State.DEAD: dead,
    State.SKIPPED: skipped,
    State.MISSED: missed,
    State.ORPHANED: orphaned,
}
