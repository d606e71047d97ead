"""Draws the strips of schedules as SVG, without inline styles.

A strip is 672 x 40 pixels: labels at 2 to 11, cells at 14 to 32, those that are good from 19, the line of account at
34.5. Success is low and muted, and trouble is tall, with a glyph and a count. Successes between two events are one
dashed line, each dash a cell, so that a thousand strips stay small.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from itertools import pairwise
from zoneinfo import ZoneInfo

from markupsafe import Markup

from core.jobs.schedules import EPOCH, SECOND
from core.operations.slot_cells import RANKS, Stretch
from core.operations.strip_windows import BIN, Window
from core.operations.strips import Board, Drawn

WIDTH = 672
#: The widest cell. The narrowest event can still be pointed at.
WIDEST, NARROWEST = 12.0, 2.0
#: The top and the bottom of cells that are good, and of cells that are not.
GOOD, BAD = (19.0, 32.0), (14.0, 32.0)
DASH, CAP, REST = (24.0, 27.0), (14.0, 21.0), (22.0, 32.0)
#: A glyph is this wide, with the space to its count, and a digit of the count.
GLYPH, DIGIT = 11.0, 5.4
#: The glyph and the colour of each outcome that has a label.
LABELS = {
    "dead": ("dead", "dead"),
    "orphaned": ("orphan", "orphan"),
    "missed": ("miss", "miss"),
    "retrying": ("retry", "late"),
    "late": ("late", "late"),
    "skipped": ("skip", "skip"),
    "running": ("run", "run"),
}
SPANS = {"24h": "24 hours", "7d": "7 days", "90d": "90 days"}
#: The grid and its labels, which all strips of a page share.
SHARED = '<use href="#m"/><use class="hrs" href="#h"/>'
#: With more strips than this, the words of an event are only its title, so that the page stays small.
MOST_WITH_TIPS = 60


def number(value: float) -> str:
    """Return a coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Scale:
    """Where the instants of a window are drawn."""

    window: Window
    zone: ZoneInfo

    def x(self, instant: datetime) -> float:
        """Return the place of an instant, within the strip."""
        whole = self.window.before - self.window.after
        return min(max((instant - self.window.after) / whole, 0.0), 1.0) * WIDTH

    def bounds(self, cell: int, width: float, *, is_exact: bool) -> tuple[float, float]:
        """Return the left and the right end of a cell."""
        if is_exact:
            left = self.x(EPOCH + cell * SECOND)
            return left, min(left + width, WIDTH)
        left, right = (self.x(edge) for edge in self.window.edges[cell : cell + 2])
        return left, right - 1

    def local(self, instant: datetime, form: str) -> str:
        """Return an instant as text in the zone of the page."""
        there = instant.astimezone(self.zone)
        return there.strftime(form.replace("%e", str(there.day)))


@dataclass(frozen=True, slots=True)
class Shape:
    """A stretch with the ends of its cells."""

    stretch: Stretch
    ends: list[tuple[float, float]]

    @property
    def left(self) -> float:
        """The left end."""
        return self.ends[0][0]

    @property
    def right(self) -> float:
        """The right end."""
        return self.ends[-1][1]

    @property
    def label_width(self) -> float:
        """The width of the glyph and the count."""
        count = self.stretch.count or 0
        return GLYPH + (len(f"{count:,}") * DIGIT if count > 1 else 0)

    @property
    def label_at(self) -> float:
        """The left end of the label, which is in the middle of the shape as far as it fits."""
        return min(max((self.left + self.right - self.label_width) / 2, 0), WIDTH - self.label_width)


def shapes(drawn: Drawn, scale: Scale) -> list[Shape]:
    """Return the stretches of a strip with their places."""
    width = width_of(drawn)
    return [
        Shape(each, [scale.bounds(cell, width, is_exact=drawn.is_exact) for cell in each.cells])
        for each in drawn.stretches
    ]


def width_of(drawn: Drawn) -> float:
    """Return the width of a cell of its own: as wide as fits between two slots."""
    if not drawn.is_exact:
        return WIDEST
    cells = [cell for each in drawn.stretches for cell in each.cells]
    apart = min((after - before for before, after in pairwise(cells)), default=86400)
    return max(min(apart * WIDTH / 86400 - 1, WIDEST), NARROWEST)


def boxes(ends: Sequence[tuple[float, float]], span: tuple[float, float], inset: float = 0) -> str:
    """Return the path of a box for each cell."""
    top, bottom = span[0] + inset, span[1] - inset
    return "".join(
        f"M{number(left + inset)} {number(top)}h{number(max(right - left - 2 * inset, 1))}v{number(bottom - top)}"
        f"H{number(left + inset)}z"
        for left, right in ends
    )


def row(ends: Sequence[tuple[float, float]], span: tuple[float, float], colour: str) -> str:
    """Return the cells of a stretch: one dashed line if all are alike and evenly spaced, otherwise a box for each."""
    width, steps = ends[0][1] - ends[0][0], [after[0] - before[0] for before, after in pairwise(ends)]
    if len(ends) > 2 and max(steps) - min(steps) < 0.02:
        middle, height, step = (span[0] + span[1]) / 2, span[1] - span[0], (ends[-1][0] - ends[0][0]) / len(steps)
        line = f"M{number(ends[0][0])} {number(middle)}H{number(ends[-1][1])}"
        dashes = f"{width:.3f} {step - width:.3f}"
        return f'<path class="l-{colour}" stroke-width="{number(height)}" stroke-dasharray="{dashes}" d="{line}"/>'
    return f'<path class="f-{colour}" d="{boxes(ends, span)}"/>'


def cells(shape: Shape) -> str:
    """Return the cells of a stretch."""
    ends = shape.ends
    match shape.stretch.outcome:
        case "succeeded":
            return row(ends, GOOD, "ok")
        case "skipped":
            return row(ends, DASH, "skip")
        case "late" | "retrying":
            return row(ends, REST, "ok") + row(ends, CAP, "late")
        case "missed":
            return f'<path class="s-miss" d="{boxes(ends, BAD, 0.7)}"/>'
        case "running":
            return row(ends, GOOD, "run")
        case "not on record":
            return f'<path class="s-none" d="M{number(shape.left)} 25.5H{number(max(shape.right, shape.left + 6))}"/>'
        case "to come" | "queued":
            return f'<path class="s-next" d="{boxes(ends, GOOD, 0.5)}"/>'
        case outcome:
            return row(ends, BAD, "orphan" if outcome == "orphaned" else "dead")


def labelled(found: Iterable[Shape]) -> set[int]:
    """Return which shapes have a label, by their ids. Where labels would meet, the worse one stays."""
    taken: list[tuple[float, float]] = []
    kept: set[int] = set()
    for shape in sorted(found, key=lambda each: -RANKS[each.stretch.outcome]):
        left, right = shape.label_at, shape.label_at + shape.label_width
        if shape.stretch.outcome in LABELS and all(right < other[0] or left > other[1] for other in taken):
            taken.append((left, right))
            kept.add(id(shape))
    return kept


def label(shape: Shape) -> str:
    """Return the glyph and the count of a stretch. A single slot needs no count."""
    glyph, colour = LABELS[shape.stretch.outcome]
    left, count = shape.label_at, shape.stretch.count or 0
    said = f'<use href="#{glyph}" class="g {colour}" x="{number(left)}" y="2" width="9" height="9"/>'
    if count > 1:
        said += f'<text class="k-{colour}" x="{number(left + GLYPH)}" y="10">{count:,}</text>'
    return said


def words(shape: Shape, scale: Scale) -> str:
    """Return what a stretch shows, such as ``6 slots dead: retries, Fri 27 Nov 19:00 to 20:15``."""
    stretch = shape.stretch
    count = "slots" if stretch.count is None else "1 slot" if stretch.count == 1 else f"{stretch.count:,} slots"
    if stretch.count and stretch.slots and stretch.slots > stretch.count:
        count = f"{stretch.count:,} of {stretch.slots:,} slots"
    outcome = "at a later attempt" if stretch.outcome == "retrying" else stretch.outcome
    reason = f": {stretch.reason}" if stretch.reason else ""
    return f"{count} {outcome}{reason}, {times(stretch, scale)}"


def times(stretch: Stretch, scale: Scale) -> str:
    """Return the first and the last slot of an event."""
    assert stretch.first is not None
    assert stretch.last is not None
    first = scale.local(stretch.first, "%a %e %b %H:%M")
    last = scale.local(stretch.last, "%a %e %b %H:%M")
    if first == last:
        return first
    is_same_day = first.split()[:3] == last.split()[:3]
    return f"{first} to {last.split()[-1] if is_same_day else last}"


def event(shape: Shape, scale: Scale, address: str, *, has_label: bool, has_tip: bool) -> str:
    """Return a stretch that is not good, as a link to the reason."""
    said = escape(words(shape, scale))
    left, width = shape.left - 1, shape.right - shape.left + 2
    tip = (
        f'<foreignObject x="{number(min(max(left - 20, 0), WIDTH - 288))}" y="36" width="288" height="1">'
        if has_tip
        else ""
    )
    return (
        f'<a class="ev" href="{escape(address)}"><title>{said}</title>{cells(shape)}'
        f"{label(shape) if has_label else ''}"
        f'<rect class="hit" x="{number(left)}" y="12" width="{number(width)}" height="22" rx="2"/>'
        f"{tip}{f'<div class=tip aria-hidden=true>{said}</div></foreignObject>' if has_tip else ''}</a>"
    )


def base(found: Sequence[Shape]) -> str:
    """Return the line of account, which is left out where slots are not on record."""
    missing = [shape for shape in found if shape.stretch.outcome == "not on record"]
    ends = [0.0, *(end for shape in missing for end in (shape.left, shape.right)), float(WIDTH)]
    lines = (f"M{number(left)} 34.5H{number(right)}" for left, right in zip(ends[::2], ends[1::2], strict=True))
    return f'<path class="base" d="{"".join(lines)}"/>'


def bands(drawn: Drawn, scale: Scale) -> Iterator[str]:
    """Yield a grey band for each pause that covered the schedule."""
    for pause in drawn.held:
        left = scale.x(pause.paused_at)
        right = scale.x(pause.until) if pause.until and pause.until < scale.window.now else scale.x(scale.window.now)
        if right > left:
            yield f'<rect class="band" x="{number(left)}" width="{number(max(right - left, 1))}" y="-1" height="42"/>'


def summary(drawn: Drawn, window: Window) -> str:
    """Return a strip in words."""
    counts: dict[str, int] = {}
    for each in drawn.stretches:
        if each.outcome != "to come":
            counts[each.outcome] = counts.get(each.outcome, 0) + (each.count or 0)
    said = ", ".join(f"{count:,} {outcome}" if count else outcome for outcome, count in counts.items())
    return f"{drawn.strip.job}, last {SPANS[window.span]}: {said or 'no slots'}"


def strip(
    drawn: Drawn, scale: Scale, address_of: Callable[[Drawn, Stretch], str], *, marks: str = SHARED, has_tips: bool
) -> Markup:
    """Return the drawing of one strip. ``address_of`` gives the address that explains an event."""
    found = shapes(drawn, scale)
    kept = labelled(found)
    parts = [
        event(each, scale, address_of(drawn, each.stretch), has_label=id(each) in kept, has_tip=has_tips)
        if each.stretch.first is not None
        else cells(each)
        for each in found
    ]
    head = f'<svg width="{WIDTH}" height="40" role="group" aria-label="{escape(summary(drawn, scale.window))}">'
    return Markup(f"{head}{marks}{''.join(bands(drawn, scale))}{base(found)}{''.join(parts)}</svg>")


def ticks(scale: Scale) -> list[tuple[float, str]]:
    """Return the lines of the grid, with their labels."""
    window = scale.window
    if window.span == "90d":
        firsts = [edge for edge in window.edges[:-1] if edge.astimezone(scale.zone).day == 1]
        return [(scale.x(edge), scale.local(edge, "%b %Y" if n == 0 else "%b")) for n, edge in enumerate(firsts)]
    quarters = (window.after + BIN * n for n in range((window.before - window.after) // BIN))
    local = [quarter.astimezone(scale.zone) for quarter in quarters]
    hours = [at for at in local if at.minute == 0 and at.hour % (3 if window.span == "24h" else 24) == 0]
    if window.span == "24h":
        return [(scale.x(at), f"{at:%a %H}" if at.hour == 0 else f"{at:%H}") for at in hours]
    return [(scale.x(at), scale.local(at, "%a %e")) for at in hours]


def marks(board: Board, scale: Scale) -> tuple[str, str]:
    """Return the lines of the grid, of releases and of now, and the labels below a strip."""
    found = ticks(scale)
    grid = "".join(f"M{number(x)} 0V41" for x, _ in found)
    releases = "".join(f"M{number(scale.x(mark.at))} -1V41" for mark in board.releases)
    now = number(scale.x(scale.window.now))
    lines = f'<path class="grid" d="{grid}"/><path class="rel" d="{releases}"/><path class="now" d="M{now} -1V41"/>'
    return lines, "".join(
        f'<text x="{number(max(x, 3.2 * len(said)))}" y="51">{escape(said)}</text>' for x, said in found
    )


def definitions(board: Board, scale: Scale) -> Markup:
    """Return the marks that all strips of a page share."""
    lines, labels = marks(board, scale)
    shared = f'<g id="m">{lines}</g><g id="h" class="hl" text-anchor="middle">{labels}</g>'
    return Markup(f'<svg class="sprite" aria-hidden="true"><defs>{shared}</defs></svg>')


def own_marks(board: Board, scale: Scale) -> str:
    """Return the marks of a strip that stands alone."""
    lines, labels = marks(board, scale)
    return f'{lines}<g class="hl" text-anchor="middle">{labels}</g>'


def axis(board: Board, scale: Scale) -> Markup:
    """Return the labels above all strips."""
    now = scale.x(scale.window.now)
    said = [
        f'<text x="{number(max(x, 14))}" y="30" text-anchor="middle">{escape(label)}</text>'
        for x, label in ticks(scale)
        if abs(x - now) > 28
    ]
    said.append(
        f'<text x="{number(min(now + 16, WIDTH))}" y="30" text-anchor="end" class="nowt">'
        f"{scale.local(scale.window.now, '%H:%M')}</text>"
    )
    taken = -float(WIDTH)
    for mark in sorted(board.releases, key=lambda each: each.at):
        x = scale.x(mark.at)
        said.append(f'<path class="rel" d="M{number(x)} 18V36"/>')
        if x - taken > 84:
            words = f"{mark.release[:7]} {scale.local(mark.at, '%H:%M' if scale.window.span == '24h' else '%e %b')}"
            said.append(f'<text x="{number(max(x, 80))}" y="13" text-anchor="end">{escape(words)}</text>')
            taken = x
    return Markup(f'<svg width="{WIDTH}" height="36" aria-hidden="true">{"".join(said)}</svg>')
