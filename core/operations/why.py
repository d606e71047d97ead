"""Why a job did or did not run: the ledger's rows, and their absence, turned into sentences.

``explain`` looks for what was due at a moment: slots on record, slots that the schedule has and the ledger has not,
and runs by request. ``core/operations/stories.py`` tells what became of each run.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from core.errors import BadTime
from core.jobs.registry import Registry
from core.ledger import history
from core.ledger.history import Run
from core.ledger.models import State
from core.operations import runs, scopes, times
from core.operations.shape import Instant, Shape
from core.operations.stories import Scene, alarms, story
from core.operations.times import Moment
from core.operations.wording import span

#: How many requests of one moment are told of one by one.
REQUESTS_TOLD = 3


class Explanation(Shape):
    """What became of a job at a time, and why."""

    job: str
    key: str
    at: Instant
    succeeded: bool
    #: The slot that was asked for, if there was one.
    slot: Instant | None
    answer: list[str]
    runs: list[runs.Run]


@dataclass(slots=True)
class Answer:
    """What there is to say."""

    sentences: list[str] = field(default_factory=list)
    #: The slot that was asked for, if there was one.
    slot: datetime | None = None
    #: The runs that were told of.
    runs: list[Run] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether what was due ran and succeeded."""
        return bool(self.runs) and all(run.state == State.SUCCEEDED for run in self.runs)


def ask(connection: Connection, registry: Registry, job: str, *, at: str, key: str = "") -> Explanation:
    """What became of ``job`` at a time, read on the clock of the job's zone. Raises UnknownJob or BadTime."""
    zone = zone_of(registry, job)
    runs.refuse_unknown(connection, registry, job)
    try:
        moment = times.read(at, zone, history.now(connection))
    except (ValueError, OverflowError) as error:
        expected = "expected 03:00, 2026-11-23T03:00 or 2026-11-23T03:00:00+00:00"
        raise BadTime(f"{at!r} is not a time ({error}); {expected}", "at") from None
    answer = explain(connection, registry, job, key, moment, zone)
    return Explanation(
        job=job,
        key=key,
        at=moment.start.astimezone(zone),
        succeeded=answer.succeeded,
        slot=answer.slot,
        answer=answer.sentences,
        runs=[runs.shape(run) for run in answer.runs],
    )


def zone_of(registry: Registry, job: str) -> ZoneInfo:
    """The zone in which people mean the times of ``job``."""
    found = registry.jobs.get(job)
    return ZoneInfo((found.schedule.timezone if found and found.schedule else None) or "UTC")


def explain(connection: Connection, registry: Registry, name: str, key: str, moment: Moment, zone: ZoneInfo) -> Answer:
    """What became of the job ``name`` at ``moment``."""
    scene = Scene(
        connection,
        name,
        key,
        registry.jobs.get(name),
        zone,
        history.now(connection),
        history.alive(connection),
        scopes.of_job(registry, name),
    )
    answer = Answer([moment.note] if moment.note else [])
    if scene.job is None:
        answer.sentences.append(f"No loaded plugin has {name} any more; this is what the ledger remembers.")
    elif not scene.job.ledger:
        answer.sentences.append(f"{name} is on the fast lane (ledger=False): its runs leave no trace in the ledger.")
        return answer
    tell_slots(scene, moment, answer)
    tell_requests(scene, moment, answer)
    if not answer.runs and answer.slot is None:
        answer.sentences += nothing_due(scene, moment)
    return answer


def tell_slots(scene: Scene, moment: Moment, answer: Answer) -> None:
    """Tell of the first slot of the moment in full, and sum up the others."""
    recorded = {
        run.slot: run
        for start, end in moment.stretches
        for run in history.of_slots(scene.connection, scene.name, scene.key, start, end)
    }
    slots = sorted({*recorded, *(scheduled(scene, moment) if not scene.key else ())})
    if not slots:
        return
    answer.slot, *others = slots
    run = recorded.get(answer.slot)
    if run is None:
        answer.sentences += unrecorded(scene, answer.slot)
    else:
        answer.runs.append(run)
        answer.sentences += story(scene, run)
    if others:
        became = Counter(recorded[slot].state if slot in recorded else "not on record" for slot in others)
        counts = ", ".join(f"{count} {what}" for what, count in sorted(became.items()))
        fell = f"{more(len(others), 'slot')} fell into that time: {counts}"
        answer.sentences.append(f"{fell}. Give seconds to ask for one.")


def scheduled(scene: Scene, moment: Moment) -> Iterator[datetime]:
    """The slots of today's schedule in the moment."""
    if scene.job is None or scene.job.schedule is None:
        return
    for start, end in moment.stretches:
        # Both ends of between() lie the other way round.
        yield from scene.job.schedule.between(start - timedelta.resolution, end - timedelta.resolution)


def tell_requests(scene: Scene, moment: Moment, answer: Answer) -> None:
    """Tell of what was requested in the moment."""
    requests = [
        run
        for start, end in moment.stretches
        for run in history.requested(scene.connection, scene.name, scene.key or None, start, end)
    ]
    for run in requests[:REQUESTS_TOLD]:
        answer.sentences += story(scene, run)
    if len(requests) > REQUESTS_TOLD:
        answer.sentences.append(f"{more(len(requests) - REQUESTS_TOLD, 'run')} were requested in that time: rota runs.")
    if answer.slot is None:
        answer.runs += requests[:REQUESTS_TOLD]


def more(count: int, noun: str) -> str:
    """``one more slot``, ``7 more slots``."""
    return f"{count} more {noun}s" if count > 1 else f"One more {noun}"


def nothing_due(scene: Scene, moment: Moment) -> list[str]:
    """Nothing was due then: what the schedule says instead."""
    asked = scene.at(moment.start)
    schedule = scene.job.schedule if scene.job else None
    if scene.key:
        return [f"Nothing of {scene.name} with the key {scene.key!r} is on record for {asked}."]
    if schedule is None:
        sentences = [f"{scene.name} has no schedule; it runs by request, and none is on record for {asked}."]
        last = history.last_requested(scene.connection, scene.name, moment.start)
        if last is not None:
            sentences.append(f"The last one before that was run {last.id}, {scene.at(last.queued_at)}: {last.state}.")
        return sentences
    before, after = schedule.latest_at(moment.start), schedule.next_after(moment.start)
    nearest = f"{scene.at(before)}{state_of(scene, before)} and {scene.at(after)}{state_of(scene, after)}"
    return [
        f"{scene.name} was not due at {asked}: its schedule is {str(schedule)!r}.",
        f"The nearest slots are {nearest}.",
    ]


def state_of(scene: Scene, slot: datetime) -> str:
    """What a slot became, in brackets."""
    found = history.of_slots(scene.connection, scene.name, scene.key, slot, slot + timedelta.resolution)
    if found:
        return f" ({found[0].state})"
    return " (to come)" if slot > scene.now else " (not on record)"


def unrecorded(scene: Scene, slot: datetime) -> list[str]:
    """A slot of the schedule that the ledger does not have."""
    assert scene.job is not None
    said = f"The slot {scene.at(slot)} of {scene.name}"
    if slot > scene.now:
        return [f"{said} has yet to come, {scene.ago(slot)}.", *alarms(scene)]
    mark = history.watermark(scene.connection, scene.name)
    first = history.first_slot(scene.connection, scene.name, scene.key)
    if mark is None:
        return [f"{said} is not on record: no worker has ever run with this job's schedule.", *alarms(scene)]
    if slot > mark.accounted_until:
        late = scene.now - mark.accounted_until
        waiting = f"{said} is not on record yet: its slots are accounted for until {scene.at(mark.accounted_until)}"
        policy = f"Once a worker runs, misfire={scene.job.misfire!r} decides within {span(scene.job.misfire_grace)}."
        return [f"{waiting}, {span(late)} ago.", *alarms(scene), policy]
    if first is None or slot < first:
        since = f"the oldest one on record is {scene.at(first)}" if first else "none of its slots is"
        return [f"{said} is not on record; {since}. Its accounting began later, or the run was pruned since."]
    if mark.spec != str(scene.job.schedule):
        return [f"{said} is not on record: the schedule was {mark.spec!r} when slots were last accounted for."]
    return [f"{said} is not on record: this schedule was not in force then, or the run was pruned since."]
