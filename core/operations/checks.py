"""One answer of ``rota check``."""

from collections.abc import Iterable
from typing import Literal

from core.operations.json_shape import Shape

Outcome = Literal["ok", "wrong", "info"]


class Check(Shape):
    """One question's answer: what was found, and what to do if it is wrong."""

    name: str
    outcome: Outcome
    found: str
    advice: str = ""


def check(name: str, outcome: Outcome, found: str, advice: str = "") -> Check:
    """One answer."""
    return Check(name=name, outcome=outcome, found=found, advice=advice)


def wrong(found: Iterable[Check]) -> list[Check]:
    """Those answers that are wrong."""
    return [answer for answer in found if answer.outcome == "wrong"]
