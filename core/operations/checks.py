"""The result of one check of ``rota check``."""

from collections.abc import Iterable
from typing import Literal

from core.operations.json_shape import Shape

Outcome = Literal["ok", "wrong", "info"]


class Check(Shape):
    """The result of one check: the finding, and advice if something is wrong."""

    name: str
    outcome: Outcome
    found: str
    advice: str = ""


def check(name: str, outcome: Outcome, found: str, advice: str = "") -> Check:
    return Check(name=name, outcome=outcome, found=found, advice=advice)


def wrong(found: Iterable[Check]) -> list[Check]:
    """Return the checks that are wrong."""
    return [answer for answer in found if answer.outcome == "wrong"]
