"""Searches by what runs were given and by their errors: who may do it, and what an argument such as ``customer:42``
means.
"""

import json
import math
from typing import Any

from core.errors import Forbidden, SelectionError
from core.operations.access import View
from core.operations.redaction import Redactor

#: An argument may be in an object in an object, up to this depth.
DEEPEST = 5


def either(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of which a run's arguments must contain one, for an argument such as ``customer:42``.

    There are two objects if the value can be both a number and a text. A name with dots is a path: ``address.city``.
    Raises SelectionError.
    """
    path, colon, value = text.partition(":")
    names = path.split(".")
    if not colon or not all(names) or len(names) > DEEPEST:
        raise SelectionError(f"give an argument as NAME:VALUE, such as customer:42 or address.city:Leeds, not {text!r}")
    return [nested(names, each) for each in (value, *scalar(value))]


def scalar(value: str) -> list[Any]:
    """Return ``value`` as a number, a truth value or null, if it is one of these in JSON, and otherwise nothing."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return []
    if isinstance(found, float) and not math.isfinite(found):
        return []
    return [found] if found is None or isinstance(found, bool | int | float) else []


def nested(names: list[str], value: Any) -> dict[str, Any]:
    """Return ``value`` in an object in an object, as the path ``names`` says."""
    for name in reversed(names):
        value = {name: value}
    found: dict[str, Any] = value
    return found


def names_of(text: str) -> set[str]:
    """Return the names in the path of an argument, in lower case."""
    return set(text.partition(":")[0].lower().split("."))


def refuse_unseen(view: View, *, error: str | None, args: tuple[str, ...]) -> None:
    """Raise Forbidden for a search by a person who may not see arguments, which errors may contain."""
    if view.has_arguments:
        return
    if error is not None:
        raise Forbidden("errors may contain arguments of runs, which you may not see; search without `error`")
    if args:
        raise Forbidden("you may not see the arguments of runs; search without `arg`")


def refuse_secret(hiding: Redactor, args: tuple[str, ...], job: str | None) -> None:
    """Raise SelectionError for a search by a hidden argument of ``job``, or of any job if ``job`` is None.

    The number of runs that such a search finds would tell the secret.
    """
    if not args:
        return
    if job is not None and job not in hiding.known:
        raise SelectionError(f"the job {job!r} is not loaded here, so its arguments are hidden")
    asked = set[str]().union(*map(names_of, args))
    for each in [job] if job is not None else sorted(hiding.known):
        if found := asked & hiding.names(each):
            raise SelectionError(f"the argument {min(found)!r} of {each} is secret, and nobody can search by it")
