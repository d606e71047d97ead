"""Explains why slots of schedules made at run time have no run, from the log of changes, the pauses and the gaps."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from core.ledger import history, key_history, successes
from core.ledger.key_history import Period
from core.operations.stories import Scene, alarms
from core.operations.times import Moment
from core.operations.wording import due_in_backoff, span

#: The option of a job whose successful runs are deleted.
KEPT = 'keep="failures"'


def slots(scene: Scene, moment: Moment) -> Iterator[datetime]:
    """Yield the slots of the key within the given time, by the schedule that applied at that time."""
    found = key_history.periods(scene.connection, scene.name, scene.key)
    for start, end in moment.stretches:
        # A period excludes its start and includes its end, but a stretch includes its start and excludes its end.
        for period in found:
            yield from period.between(start - timedelta.resolution, end - timedelta.resolution)


def unrecorded(scene: Scene, slot: datetime) -> list[str]:
    """Explain a slot of the key that has no run."""
    found = key_history.periods(scene.connection, scene.name, scene.key)
    period = key_history.at(found, slot)
    said = f"The slot {scene.at(slot)} of {scene.name} for the key {scene.key!r}"
    if period is not None and period.is_readable and slot != period.extra_at and period.is_left_out(slot):
        due = due_in_backoff(period.spec, period.stretched)
        return [f"{said} did not come due: several runs of the key in a row were dead, and only {due} comes due."]
    row = key_history.row(scene.connection, scene.name, scene.key)
    if row is not None and row.held_since is not None and row.held_since < slot and row.is_paused:
        return [f"{said} does not come due: {paused(scene, row)}."]
    gaps = [gap for gap in key_history.gaps(scene.connection, scene.name, scene.key, slot) if gap.reason != "backoff"]
    if gaps:
        return [f"{said} has no run: {in_words(scene, gaps[0])}."]
    if slot > scene.now:
        return [f"{said} has yet to come, {scene.ago(slot)}.", *alarms(scene)]
    return waiting(scene, slot, said)


def paused(scene: Scene, row: Row[Any]) -> str:
    """Return a sentence such as ``its key is paused by ann since … until …: wrong password``."""
    until = f" until {scene.at(row.ends_at)}" if row.ends_at else ""
    reason = f": {row.pause_reason}" if row.pause_reason else ""
    return f"its key is paused by {row.paused_by} since {scene.at(row.paused_at)}{until}{reason}"


def in_words(scene: Scene, gap: Row[Any]) -> str:
    """Return why the slots of a gap have no runs."""
    reasons = {
        "outage": "no dispatcher led then, and the job's misfire policy does not run the slot",
        "paused": "its key was paused then" if gap.key is not None else "its job was paused then",
        "absent": "no process had its job then",
    }
    whose = "of the key" if gap.key is not None else "of all keys of the job"
    stretch = f"From {scene.at(gap.began_at)} to {scene.at(gap.ended_at)}"
    return f"{reasons.get(gap.reason, gap.reason)}. {stretch}, {gap.slots} slots {whose} have no runs for that reason"


def waiting(scene: Scene, slot: datetime, said: str) -> list[str]:
    """Explain a slot that has no run and is in no gap."""
    mark = history.watermark(scene.connection, scene.name)
    if mark is None:
        return [f"{said} is not on record: no dispatcher accounts for the slots of this job now.", *alarms(scene)]
    if slot > mark.accounted_until:
        if pauses := scene.pauses_at(slot):
            return [f"{said} has no run: its job was paused then, by {pauses[0].paused_by}."]
        late = span(scene.now - mark.accounted_until)
        return [f"{said} is not on record yet: only slots until {late} ago are accounted for.", *alarms(scene)]
    if successes.covers(scene.connection, scene.name, slot):
        return [f"{said} succeeded at its first attempt. Its run was deleted after an hour, since the job has {KEPT}."]
    return [f"{said} is not on record: its schedule was removed or changed at that moment, or its run was deleted."]


def nothing_due(scene: Scene, instant: datetime) -> list[str]:
    """Explain that no slot of the key was due at ``instant``."""
    found = key_history.periods(scene.connection, scene.name, scene.key)
    asked, period = scene.at(instant), key_history.at(found, instant)
    if period is None:
        return [f"The ledger has no run of {scene.name} with the key {scene.key!r} for {asked}.", *before(scene, found)]
    if period.is_removed:
        since = f"it was removed by {period.by}, for slots after {scene.at(period.since)}"
        return [f"{scene.name} had no schedule for the key {scene.key!r} at {asked}: {since}."]
    if not period.is_readable:
        cause = "this host lacks its time zone, so it cannot tell its slots; a leader without the zone inserts none"
        return [f"{scene.name} has the schedule {period.spec!r} for the key {scene.key!r} at {asked}: {cause}."]
    nearest = [scene.at(slot) for slot in key_history.around(found, instant) if slot is not None]
    return [
        f"{scene.name} was not due for the key {scene.key!r} at {asked}: its schedule was {str(period.slots)!r}.",
        f"The nearest slots are {' and '.join(nearest)}.",
    ]


def before(scene: Scene, found: Sequence[Period]) -> list[str]:
    """Explain that the key had no schedule yet at the time that was asked about."""
    if found:
        return [f"Its first schedule has slots after {scene.at(found[0].since)}."]
    row = key_history.row(scene.connection, scene.name, scene.key)
    return ["Its schedule has not been seen by a dispatcher yet.", *alarms(scene)] if row is not None else []
