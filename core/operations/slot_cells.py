"""The cells of a schedule's strip: what became of its slots, bin by bin. Pure functions.

A cell is one slot, or a bin of slots. It shows its worst outcome, and how many of its slots have this outcome.
Neighbouring cells with the same outcome form one stretch, so that a strip of successes is small.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import Any

#: The outcomes of slots, the worst last.
OUTCOMES = (
    "to come",
    "succeeded",
    "queued",
    "running",
    "skipped",
    "not on record",
    "late",
    "retrying",
    "missed",
    "orphaned",
    "dead",
)
RANKS = {outcome: rank for rank, outcome in enumerate(OUTCOMES)}


@dataclass(frozen=True, slots=True)
class Event:
    """Slots of one cell that have the same outcome and the same reason."""

    cell: int
    outcome: str
    reason: str | None
    slots: int
    first: datetime
    last: datetime
    run: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring cells with the same outcome. ``slots`` is None if the slots were not counted."""

    outcome: str
    cells: tuple[int, ...]
    #: The number of slots in these cells that have the outcome; ``slots`` is the number of all slots.
    count: int | None
    slots: int | None
    reason: str | None = None
    first: datetime | None = None
    last: datetime | None = None
    run: int | None = None


def stretches(
    cells: Sequence[int],
    slots: Sequence[int] | None,
    events: Iterable[Event],
    unrecorded: Collection[int],
    to_come: Collection[int],
) -> list[Stretch]:
    """Return the stretches of a strip, in order.

    ``cells`` are the cells that have slots on record, and ``slots`` the number of slots in each. ``events`` are the
    slots that did not simply succeed in time. ``unrecorded`` are the cells whose slots came due and are not on record,
    and ``to_come`` those whose slots are not due yet.
    """
    counts = dict(zip(cells, slots, strict=True)) if slots is not None else dict.fromkeys(cells)
    special = {cell: Stretch("not on record", (cell,), None, None) for cell in unrecorded} | worst(events, counts)
    found = [*good(cells, slots, special), *special.values()]
    found += [Stretch("to come", (cell,), None, None) for cell in to_come if cell not in special and cell not in counts]
    found.sort(key=lambda each: each.cells[0])
    return [joined(list(alike)) for _, alike in groupby(found, key=lambda each: (each.outcome, each.reason))]


def worst(events: Iterable[Event], counts: Mapping[int, int | None]) -> dict[int, Stretch]:
    """Return each cell with events: its worst outcome, and how many of its slots have this outcome."""
    by_cell: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_cell[event.cell].append(event)
    return {cell: of_cell(cell, found, counts) for cell, found in by_cell.items()}


def of_cell(cell: int, events: Sequence[Event], counts: Mapping[int, int | None]) -> Stretch:
    """Return a cell with its worst outcome. Its reason is the one that most of these slots have."""
    outcome = max((event.outcome for event in events), key=RANKS.__getitem__)
    alike = [event for event in events if event.outcome == outcome]
    main = max(alike, key=lambda event: event.slots)
    first = min(alike, key=lambda event: event.first)
    return Stretch(
        outcome,
        (cell,),
        sum(event.slots for event in alike),
        counts.get(cell) or sum(event.slots for event in events),
        main.reason,
        first.first,
        max(event.last for event in alike),
        first.run,
    )


def good(cells: Sequence[int], slots: Sequence[int] | None, special: Mapping[int, Any]) -> Iterator[Stretch]:
    """Yield the stretches of successes between the ``special`` cells."""
    start = 0
    for cell in [*sorted(special), None]:
        end = len(cells) if cell is None else bisect_left(cells, cell)
        if start < end:
            count = None if slots is None else sum(slots[start:end])
            yield Stretch("succeeded", tuple(cells[start:end]), count, count)
        start = end if cell is None or end == len(cells) or cells[end] != cell else end + 1


def joined(alike: Sequence[Stretch]) -> Stretch:
    """Return neighbouring stretches with the same outcome as one."""
    first = alike[0]
    if len(alike) == 1:
        return first
    return replace(
        first,
        cells=tuple(cell for each in alike for cell in each.cells),
        count=total(each.count for each in alike),
        slots=total(each.slots for each in alike),
        last=alike[-1].last,
    )


def total(counts: Iterable[int | None]) -> int | None:
    """Return the sum of ``counts``, or None if one of them is not known."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)
