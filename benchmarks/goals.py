"""The goals and the measured values. Every benchmark records its own values, and ``make bench`` prints all of them at
the end.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured for one goal."""

    what: str
    goal: str
    measured: str
    is_met: bool


FOUND: list[Found] = []


def at_least(what: str, measured: float, goal: float, unit: str = "x") -> None:
    """A figure that is to be no less than its goal."""
    FOUND.append(Found(what, f">= {goal:g} {unit}", f"{measured:.3g} {unit}", measured >= goal))


def at_most(what: str, measured: float, goal: float, unit: str) -> None:
    """A figure that is to be no more than its goal."""
    FOUND.append(Found(what, f"<= {goal:g} {unit}", f"{measured:.3g} {unit}", measured <= goal))


def table() -> str:
    """All that were noted, a line each."""
    lines = [f"{'':44} {'goal':>12} {'measured':>12}"]
    for each in FOUND:
        lines.append(f"{each.what:44} {each.goal:>12} {each.measured:>12}  {'met' if each.is_met else 'missed'}")
    return "\n".join(lines)
