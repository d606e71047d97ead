"""A run's story: what became of it and why, in sentences for an operator; a function for each state."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from core.jobs.job import Job
from core.ledger import history, pauses
from core.ledger.history import Process, Run
from core.ledger.models import State
from core.ledger.pauses import Pause
from core.operations.pauses import in_words
from core.operations.wording import brief, span

#: What a start may be late without a word about it.
PUNCTUAL = timedelta(seconds=2)
#: Runs that nobody at all finished for this long around a slot are a sign of an outage.
QUIET = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Scene:
    """What every story may refer to."""

    connection: Connection
    name: str
    key: str
    #: None: no loaded plugin has it.
    job: Job | None
    zone: ZoneInfo
    now: datetime
    alive: list[Process]
    #: The scopes of the pauses that hold the job.
    scopes: Collection[str] = ()

    def at(self, instant: datetime) -> str:
        """An instant on the clock of the job's zone."""
        return f"{instant.astimezone(self.zone):%Y-%m-%d %H:%M:%S %Z}"

    def pauses_at(self, instant: datetime) -> list[Pause]:
        """The pauses that held the job at an instant."""
        found = pauses.of_scopes(pauses.not_over_at(self.connection, instant), self.scopes)
        return [pause for pause in found if pause.covers(instant)]

    def ago(self, instant: datetime) -> str:
        """How far away an instant is."""
        return f"{span(self.now - instant)} ago" if instant <= self.now else f"in {span(instant - self.now)}"


def story(scene: Scene, run: Run) -> list[str]:
    """What became of a run."""
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
    sentences = [f"{subject} is running on {run.worker} since {scene.at(run.started_at)}.{progress}"]
    if run.process_id not in {process.id for process in scene.alive}:
        sentences.append("That worker is no longer alive; a dispatcher hands the run on.")
    return [*sentences, *start(scene, run), *hardships(run), *alarms(scene)]


def queued(scene: Scene, run: Run, subject: str) -> list[str]:
    if run.reason == "arguments":
        return [f"{subject} waits for a worker whose declaration of the job its arguments fit.", *alarms(scene)]
    if run.due_at > scene.now:
        return [f"{subject} waits for its time, {scene.at(run.due_at)} ({scene.ago(run.due_at)})."]
    alarm = alarms(scene) or ["Workers are alive: they are busy, or the message got lost and is sent again in seconds."]
    return [f"{subject} is due since {scene.at(run.due_at)} and has not been started.", *alarm]


def retrying(scene: Scene, run: Run, subject: str) -> list[str]:
    reasons = {
        "error": f"its attempt {run.attempt} failed: {run.error}",
        "worker died": f"its worker {run.worker} died or fell silent during attempt {run.attempt}",
        "its worker lost PostgreSQL": f"its worker {run.worker} lost PostgreSQL during attempt {run.attempt}",
        "its worker was stopped": f"its worker {run.worker} was stopped during attempt {run.attempt}",
        "overlap": "another run of the same job and key is at work",
        "arguments": "it waits for a worker whose declaration of the job its arguments fit",
        "adopted": "it was orphaned, and someone has taken it up again",
        "by hand": "it was dead, and someone has asked for it to be retried",
        "no connection": f"PostgreSQL had no connection for its last attempt, which does not count ({run.error})",
    }
    when = f"at {scene.at(run.due_at)}" if run.due_at > scene.now else "as soon as a worker takes it"
    because = reasons.get(run.reason or "", run.reason or run.error or "it was handed back")
    return [
        f"{subject} will be tried again {when}: {because}.",
        *rival_sentences(scene, run, scene.now),
        *retried(scene, run),
        *alarms(scene),
    ]


def dead(scene: Scene, run: Run, subject: str) -> list[str]:
    reasons = {
        "retries": f"all its {run.failures} attempts failed; the last error: {run.error}",
        "crashes": f"{run.crashes} workers died or fell silent under it; the last was {run.worker}",
        "arguments": f"its arguments do not fit the job: {run.error}",
        "no connection": f"for an hour PostgreSQL had no connection for it: {run.error}",
        "result": f"what it returned cannot be kept: {run.error}",
        "dropped": f"someone has dropped it; it was {run.former_state} before",
    }
    because = reasons.get(run.reason or "", run.error or run.reason or "no reason is on record")
    return [f"{subject} is dead since {scene.at(run.finished_at)}: {because}.", *start(scene, run), *hardships(run)]


def skipped(scene: Scene, run: Run, subject: str) -> list[str]:
    if run.reason == "paused":
        return [f"{subject} was skipped: its job was paused.", *pause_sentences(scene, run)]
    if run.reason != "overlap":
        return [f"{subject} was skipped at {scene.at(run.finished_at)}: {run.reason}."]
    sentences = [
        f"{subject} was skipped at {scene.at(run.finished_at)}: another run was still at work (overlap='skip')."
    ]
    found = rival_sentences(scene, run, run.finished_at)
    return sentences + (found or ["Which one, its later attempts have overwritten."])


def pause_sentences(scene: Scene, run: Run) -> list[str]:
    """Which pause it was: one in which the slot came due, or one that began before the slot was started."""
    found = scene.pauses_at(run.slot) or scene.pauses_at(run.finished_at - timedelta.resolution)
    return [f"It was {in_words(pause, scene.at)}." for pause in found]


def rival_sentences(scene: Scene, run: Run, instant: datetime) -> list[str]:
    """The runs that were in the way."""
    if run.reason != "overlap":
        return []
    sentences = []
    for rival in history.rivals(scene.connection, run, instant):
        stood_for = f"for the slot {scene.at(rival.slot)}" if rival.slot else "by request"
        until = f"until {scene.at(rival.finished_at)}" if rival.finished_at else "and still is"
        sentences.append(
            f"That was run {rival.id} ({stood_for}), at work on {rival.worker} from {scene.at(rival.started_at)} "
            f"{until}; it is {rival.state}."
        )
    return sentences


def missed(scene: Scene, run: Run, subject: str) -> list[str]:
    grace = f" of {span(scene.job.misfire_grace)}" if scene.job else ""
    cap = f" {scene.job.misfire_cap}" if scene.job else ""
    reasons = {
        "grace": f"nothing started it within its grace{grace}",
        "superseded": "nothing started it in time, and misfire='latest' runs only the newest of such slots",
        "policy": "nothing started it in time, and misfire='skip' runs none of such slots late",
        "capped": f"nothing started it in time, and of such slots misfire='all' runs no more than the newest{cap}",
    }
    because = reasons.get(run.reason or "", str(run.reason))
    sentences = [f"{subject} was missed: {because}. This was recorded {scene.at(run.finished_at)}."]
    newer = history.next_served(scene.connection, run) if run.reason == "superseded" else None
    if newer is not None:
        sentences.append(f"Run {newer.id} for the slot {scene.at(newer.slot)} ran instead; it is {newer.state}.")
    return [*sentences, *outage(scene, run.slot)]


def outage(scene: Scene, slot: datetime) -> list[str]:
    """Whether workers were idle or absent around a slot."""
    around = history.worked_around(scene.connection, slot)
    until = around.after or scene.now
    if around.before is None:
        return [f"No worker had finished any run before it; the first to do so after it was at {scene.at(until)}."]
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
    }
    why = reasons.get(run.reason or "", run.reason)
    because = f", since {why}" if why else ""
    was = f" It was {run.former_state} before." if run.former_state else ""
    return [
        f"{subject} was orphaned at {scene.at(run.finished_at)}: no live process had its job{because}.{was}",
        f"If the job is back, `rota orphans adopt {run.job}` takes it up again.",
    ]


def plainly(scene: Scene, run: Run, subject: str) -> list[str]:
    return [f"{subject} is {run.state}{f': {run.reason}' if run.reason else ''}."]


def start(scene: Scene, run: Run) -> list[str]:
    """How late it was."""
    if run.slot is None or run.started_at is None:
        return []
    late = run.started_at - run.slot
    if run.attempt > 1:
        return [f"Its attempt {run.attempt} began {span(late)} after the slot's time."]
    if late <= PUNCTUAL:
        return [f"It started in time, after {span(late)}."]
    inserted = run.queued_at - run.slot
    if inserted > PUNCTUAL:
        unheard = f"nobody put the slot into the ledger for {span(inserted)}"
        return [f"It started {span(late)} late: {unheard}.", *outage(scene, run.slot)]
    return [f"It started {span(late)} late: it was queued in time, and no worker was free for it."]


def hardships(run: Run) -> list[str]:
    """What it went through before."""
    parts = []
    if run.failures:
        parts.append(f"{run.failures} ended in an error")
    if run.crashes:
        parts.append(f"{run.crashes} with the death of their worker")
    since = f"Since it was retried by hand, after {run.retried_after}, of " if run.retried_at else "Of "
    return [f"{since}its {run.attempt} attempts {' and '.join(parts)}."] if parts and run.attempt > 1 else []


def retried(scene: Scene, run: Run) -> list[str]:
    """When it was dead and retried by hand."""
    if run.retried_at is None:
        return []
    before = f"after {run.retried_after} attempts; `rota audit` says by whom"
    return [f"It had been dead, and was retried by hand at {scene.at(run.retried_at)}, {before}."]


def alarms(scene: Scene) -> list[str]:
    """What keeps the job from running right now."""
    if paused := scene.pauses_at(scene.now):
        return [f"Its job is {in_words(pause, scene.at)}. It waits until that ends." for pause in paused]
    if not any(process.kind == "worker" for process in scene.alive):
        return ["No worker is alive now: start one with `dramatiq core.main`."]
    if scene.job is not None and not history.serves(scene.alive, scene.job.queue):
        return [f"No worker that is alive takes runs from its queue {scene.job.queue!r}."]
    return []


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
