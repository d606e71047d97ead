"""Explains why a job did or did not run, from the rows that are in the ledger, and from rows that are missing.

``explain`` finds the slots in the ledger, the slots of the schedule that are not in the ledger, and the requested runs
of a moment. ``core/operations/stories.py`` explains each run.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from core.errors import BadTime, UnknownRun
from core.jobs.registry import Registry
from core.ledger import history
from core.ledger.history import Run
from core.ledger.models import State
from core.operations import key_why, runs, scopes, times
from core.operations.access import WHOLE, View
from core.operations.json_shape import Instant, Shape
from core.operations.redaction import redactor
from core.operations.stories import Scene, alarms, story
from core.operations.times import Moment
from core.operations.wording import span

#: At most this many requests of one moment are explained one by one.
REQUESTS_TOLD = 3


class Explanation(Shape):
    """The explanation of a job's runs at a time."""

    job: str
    key: str
    at: Instant
    succeeded: bool
    #: The slot of that time, if there is one.
    slot: Instant | None
    answer: list[str]
    runs: list[runs.Run]


class Story(Shape):
    """The explanation of one run."""

    run: int
    job: str
    answer: list[str]


@dataclass(slots=True)
class Answer:
    """The sentences of an explanation, with the slot and the runs that they explain."""

    sentences: list[str] = field(default_factory=list)
    #: The slot of that time, if there is one.
    slot: datetime | None = None
    #: The explained runs.
    runs: list[Run] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether there is an explained run, and all explained runs succeeded."""
        return bool(self.runs) and all(run.state == State.SUCCEEDED for run in self.runs)


def of_run(connection: Connection, registry: Registry, run_id: int, view: View = WHOLE) -> Story:
    """Explain one run. Raises UnknownRun."""
    run = history.run(connection, run_id)
    if run is None or not view.shows(run.job):
        raise UnknownRun(f"run {run_id} does not exist; runs are deleted after ROTA_RETENTION_DAYS")
    scene = scene_of(connection, registry, run.job, run.key, zone_of(registry, run.job), view)
    return Story(run=run_id, job=run.job, answer=story(scene, run))


def ask(
    connection: Connection, registry: Registry, job: str, *, at: str, key: str = "", view: View = WHOLE
) -> Explanation:
    """Explain ``job`` at a time, which is read in the job's time zone. Raises UnknownJob or BadTime."""
    zone = zone_of(registry, job)
    runs.refuse_unknown(connection, registry, job)
    try:
        moment = times.read(at, zone, history.now(connection))
    except (ValueError, OverflowError) as error:
        expected = "expected 03:00, 2026-11-23T03:00 or 2026-11-23T03:00:00+00:00"
        raise BadTime(f"{at!r} is not a time ({error}); {expected}", "at") from None
    times.within(moment.start, "at")
    hiding = redactor(connection, registry, view)
    answer = explain(connection, registry, job, key, moment, zone, view)
    return Explanation(
        job=job,
        key=key,
        at=moment.start.astimezone(zone),
        succeeded=answer.succeeded,
        slot=answer.slot,
        answer=answer.sentences,
        runs=runs.shapes(connection, [hiding.run(run) for run in answer.runs]),
    )


def zone_of(registry: Registry, job: str) -> ZoneInfo:
    """Return the time zone of ``job``'s schedule."""
    found = registry.jobs.get(job)
    return ZoneInfo((found.schedule.timezone if found and found.schedule else None) or "UTC")


def scene_of(
    connection: Connection, registry: Registry, name: str, key: str, zone: ZoneInfo, view: View = WHOLE
) -> Scene:
    """Return the facts about the job ``name``, as they are now."""
    return Scene(
        connection,
        name,
        key,
        registry.jobs.get(name),
        zone,
        history.now(connection),
        history.alive(connection),
        redactor(connection, registry, view),
        scopes.of_job(registry, name),
    )


def explain(
    connection: Connection,
    registry: Registry,
    name: str,
    key: str,
    moment: Moment,
    zone: ZoneInfo,
    view: View = WHOLE,
) -> Answer:
    """Explain the job ``name`` at ``moment``."""
    scene = scene_of(connection, registry, name, key, zone, view)
    answer = Answer([moment.note] if moment.note else [])
    if scene.job is None:
        answer.sentences.append(f"No plugin that is loaded here has {name}; the ledger has its runs.")
    elif not scene.job.ledger:
        answer.sentences.append(f"{name} is on the fast lane (ledger=False): its runs are not in the ledger.")
        return answer
    tell_slots(scene, moment, answer)
    tell_requests(scene, moment, answer)
    if not answer.runs and answer.slot is None:
        answer.sentences += nothing_due(scene, moment)
    return answer


def tell_slots(scene: Scene, moment: Moment, answer: Answer) -> None:
    """Explain the first slot of the moment, and summarise the other slots."""
    recorded = {
        run.slot: run
        for start, end in moment.stretches
        for run in history.of_slots(scene.connection, scene.name, scene.key, start, end)
    }
    due = key_why.slots(scene, moment) if scene.key else scheduled(scene, moment)
    slots = sorted({*recorded, *due})
    if not slots:
        return
    answer.slot, *others = slots
    run = recorded.get(answer.slot)
    if run is None:
        answer.sentences += (key_why.unrecorded if scene.key else unrecorded)(scene, answer.slot)
    else:
        answer.runs.append(run)
        answer.sentences += story(scene, run)
    if others:
        became = Counter(recorded[slot].state if slot in recorded else "not on record" for slot in others)
        counts = ", ".join(f"{count} {what}" for what, count in sorted(became.items()))
        fell = f"{more(len(others), 'slot')} came due in that time: {counts}"
        answer.sentences.append(f"{fell}. Give the time with seconds to ask about one of them.")


def scheduled(scene: Scene, moment: Moment) -> Iterator[datetime]:
    """Yield the slots of the present schedule within the given time."""
    if scene.job is None or scene.job.schedule is None:
        return
    for start, end in moment.stretches:
        # between() excludes its start and includes its end, but a stretch includes its start and excludes its end.
        yield from scene.job.schedule.between(start - timedelta.resolution, end - timedelta.resolution)


def tell_requests(scene: Scene, moment: Moment, answer: Answer) -> None:
    """Explain the runs that were requested within the given time."""
    requests = [
        run
        for start, end in moment.stretches
        for run in history.requested(scene.connection, scene.name, scene.key or None, start, end)
    ]
    for run in requests[:REQUESTS_TOLD]:
        answer.sentences += story(scene, run)
    if len(requests) > REQUESTS_TOLD:
        others = more(len(requests) - REQUESTS_TOLD, "requested run")
        answer.sentences.append(f"{others} of that time not shown here; see `rota runs --job {scene.name}`.")
    if answer.slot is None:
        answer.runs += requests[:REQUESTS_TOLD]


def more(count: int, noun: str) -> str:
    """Return a text such as ``one more slot`` or ``7 more slots``."""
    return f"{count} more {noun}s" if count > 1 else f"One more {noun}"


def nothing_due(scene: Scene, moment: Moment) -> list[str]:
    """Explain from the schedule that nothing was due at ``moment``."""
    asked = scene.at(moment.start)
    schedule = scene.job.schedule if scene.job else None
    if scene.key:
        return key_why.nothing_due(scene, moment.start)
    if schedule is None:
        sentences = [f"{scene.name} has no schedule; it runs by request, and the ledger has no request for {asked}."]
        last = history.last_requested(scene.connection, scene.name, moment.start)
        if last is not None:
            sentences.append(
                f"The last request before that was run {last.id}, {scene.at(last.queued_at)}: {last.state}."
            )
        return sentences
    before, after = schedule.latest_at(moment.start), schedule.next_after(moment.start)
    nearest = f"{scene.at(before)}{state_of(scene, before)} and {scene.at(after)}{state_of(scene, after)}"
    return [
        f"{scene.name} was not due at {asked}: its schedule is {str(schedule)!r}.",
        f"The nearest slots are {nearest}.",
    ]


def state_of(scene: Scene, slot: datetime) -> str:
    """Return the state of a slot, in brackets."""
    found = history.of_slots(scene.connection, scene.name, scene.key, slot, slot + timedelta.resolution)
    if found:
        return f" ({found[0].state})"
    return " (to come)" if slot > scene.now else " (not on record)"


def unrecorded(scene: Scene, slot: datetime) -> list[str]:
    """Explain a slot of the schedule that is not in the ledger."""
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
        grace = span(scene.job.misfire_grace)
        policy = (
            f"When a worker is back, misfire={scene.job.misfire!r} decides whether the slot runs. A slot that is more "
            f"than {grace} late does not run."
        )
        return [f"{waiting}, {span(late)} ago.", *alarms(scene), policy]
    if first is None or slot < first:
        since = f"the oldest one on record is {scene.at(first)}" if first else "none of its slots is on record"
        cause = "The recording of this schedule's slots began later, or the run of the slot was pruned"
        return [f"{said} is not on record; {since}. {cause}."]
    if mark.spec != str(scene.job.schedule):
        return [f"{said} is not on record: the schedule was {mark.spec!r} when slots were last accounted for."]
    return [f"{said} is not on record: this schedule was not in force then, or its run was pruned."]
