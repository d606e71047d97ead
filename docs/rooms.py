"""Draws the rooms of ``core`` from its imports: ``python docs/rooms.py`` writes ``docs/rooms.svg``.

An arrow says that a room imports from another. An arrow that others imply (a uses b, b uses c, so a may use c) is left
out, so that the picture shows the order of the house and not every step in it.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core"
PICTURE = ROOT / "docs" / "rooms.svg"
ROW, BOX_HEIGHT, GAP, MARGIN, LETTER = 84, 46, 22, 24, 8.6
Graph = dict[str, set[str]]


def room_of(path: Path) -> str:
    """The room that a file of ``core`` stands in; a file at the front is a room by itself."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The rooms that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "core":
            parts = str(node.module).split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def rooms() -> Graph:
    """Which rooms each room imports from, itself left out; the front door stands for plugins and applications."""
    graph: Graph = defaultdict(set)
    for path in sorted(CORE.rglob("*.py")):
        here = room_of(path)
        graph[here] |= {there for there in imports(path) if (CORE / there).exists() or (CORE / f"{there}.py").exists()}
        graph[here].discard(here)
    return {room: used for room, used in graph.items() if room != "__init__"}


def reduced(graph: Graph) -> Graph:
    """``graph`` without the arrows that a longer way implies."""
    reach: dict[str, set[str]] = {}

    def reachable(room: str) -> set[str]:
        if room not in reach:
            found, waiting = set(), [room]
            while waiting:
                new = graph[waiting.pop()] - found
                found |= new
                waiting += new
            reach[room] = found
        return reach[room]

    def is_implied(used: str, others: set[str]) -> bool:
        return any(used in reachable(other) and other not in reachable(used) for other in others)

    return {
        room: {used for used in all_used if not is_implied(used, all_used - {used})} for room, all_used in graph.items()
    }


def floors(layers: list[set[str]], graph: Graph) -> list[list[str]]:
    """The rooms of each layer from left to right: below what uses them, so that arrows are short."""
    place: dict[str, float] = {}
    ordered = []
    for layer in layers:
        present = sorted(room for room in layer if room in graph)

        def wanted(room: str) -> float:
            users = [place[user] for user, used in graph.items() if room in used and user in place]
            return sum(users) / len(users) if users else 0.5

        present.sort(key=lambda room: (wanted(room), room))
        for number, room in enumerate(present):
            place[room] = (number + 0.5) / len(present)
        ordered.append(present)
    return ordered


def size_of(room: str) -> str:
    """How many files a room has, and how many lines."""
    path = CORE / room
    files = list(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    lines = sum(len(file.read_text().splitlines()) for file in files)
    return f"{len(files)} files, {round(lines, -2) or lines} lines" if path.is_dir() else ""


def width_of(room: str) -> float:
    """How wide its box is."""
    is_folder = (CORE / room).is_dir()
    return max((len(room) + (1 if is_folder else 3)) * LETTER + 30, 140 if is_folder else 0)


def width_of_floor(layer: list[str]) -> float:
    """How wide a floor is, with the gaps between its rooms."""
    return sum(width_of(room) for room in layer) + GAP * (len(layer) - 1)


def boxes(ordered: list[list[str]], whole: float) -> Mapping[str, tuple[float, float, float]]:
    """The middle of each box, from left and from above, and its width; ``whole`` is the width of the picture."""
    placed = {}
    for number, layer in enumerate(ordered):
        left = (whole - width_of_floor(layer)) / 2
        for room in layer:
            width = width_of(room)
            placed[room] = (left + width / 2, MARGIN + number * ROW + BOX_HEIGHT / 2, width)
            left += width + GAP
    return placed


def arrow(start: tuple[float, float, float], end: tuple[float, float, float]) -> str:
    """An arrow from the lower edge of one box to the upper edge of another; between neighbours, from side to side."""
    (x1, y1, w1), (x2, y2, w2) = start, end
    if y1 == y2:
        side = 1 if x2 > x1 else -1
        return f'<path d="M{x1 + side * w1 / 2:.0f},{y1:.0f} L{x2 - side * (w2 / 2 + 6):.0f},{y2:.0f}"/>'
    top, bottom = y1 + BOX_HEIGHT / 2, y2 - BOX_HEIGHT / 2 - 6
    bend = (bottom - top) / 2
    return (
        f'<path d="M{x1:.0f},{top:.0f} C{x1:.0f},{top + bend:.0f} {x2:.0f},{bottom - bend:.0f} {x2:.0f},{bottom:.0f}"/>'
    )


def box(room: str, at: tuple[float, float, float]) -> str:
    """A room: its name, and how large it is."""
    x, y, width = at
    size = size_of(room)
    name_y = y - 2 if size else y + 5
    shape = (
        f'<rect x="{x - width / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="7"'
    )
    return "\n".join(
        [
            f'{shape} class="{"room" if size else "module"}"/>',
            f'<text x="{x:.0f}" y="{name_y:.0f}" class="name">{escape(room)}{"/" if size else ".py"}</text>',
            *([f'<text x="{x:.0f}" y="{y + 15:.0f}" class="size">{size}</text>'] if size else []),
        ]
    )


STYLE = """
text { font-family: ui-sans-serif, system-ui, sans-serif; text-anchor: middle; fill: #1f2933 }
.name { font-size: 15px; font-weight: 600 } .size { font-size: 11px; fill: #52606d }
.room { fill: #eef4ff; stroke: #3b6fb6 } .module { fill: #f7f7f5; stroke: #9aa5b1 }
path { fill: none; stroke: #7b8794; stroke-width: 1.2; marker-end: url(#head) }
"""


HEAD = """<defs>
<marker id="head" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0,0 L8,4 L0,8 z" style="fill:#7b8794;stroke:none;marker-end:none"/>
</marker>
</defs>"""


def picture(layers: list[set[str]]) -> str:
    """The picture as SVG, one floor for each of ``layers``."""
    graph = rooms()
    arrows = reduced(graph)
    ordered = floors(layers, arrows)
    width = max(width_of_floor(layer) for layer in ordered) + MARGIN * 2
    placed = boxes(ordered, width)
    height = MARGIN * 2 + ROW * (len(layers) - 1) + BOX_HEIGHT
    drawn = [arrow(placed[room], placed[used]) for room in sorted(arrows) for used in sorted(arrows[room])]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">',
            "<title>The rooms of core, and which imports from which</title>",
            f"<style>{STYLE}</style>",
            HEAD,
            f'<rect width="{width:.0f}" height="{height}" fill="#ffffff"/>',
            *drawn,
            *(box(room, at) for room, at in placed.items()),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.test_architecture import LAYERS

    PICTURE.write_text(picture(LAYERS))
