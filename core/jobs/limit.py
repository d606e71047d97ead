"""``Limit``: how many runs may be at work at the same time under one name, or may start within a time."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

#: A name with arguments in braces, such as ``imap:{host}``.
NAME = re.compile(r"(?:[^{}\0]|\{[^\W\d]\w*\}){1,200}")
ARGUMENT = re.compile(r"\{(\w+)\}")
NOT_ARGUMENTS = re.compile(r"\{\w+\}")
#: A filled name is stored up to this length. The remaining characters are replaced by a hash.
LONGEST_NAME = 300
#: The largest ``at_once``. It is bounded, since each claim reads the running runs of the limit.
LARGEST_AT_ONCE = 10_000
#: The largest ``most``. It is bounded, since the tokens are counted in a float.
LARGEST_MOST = 1_000_000_000
LONGEST_PER = timedelta(days=31)
SHORTEST_PER = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit over all processes: ``at_once`` runs at work, or ``most`` starts within ``per``.

    Jobs that declare the same name share the limit. ``{argument}`` in the name is replaced by the value of that
    argument when a run is inserted, so each value has a limit of its own. Operators see these values.

    ``most`` and ``per`` describe a bucket of ``most`` tokens, which is refilled evenly within ``per``. A start takes
    one token. So within any time ``t`` at most ``most + most * t / per`` runs start.
    """

    name: str
    at_once: int | None = None
    most: int | None = None
    per: timedelta | None = None

    @property
    def arguments(self) -> list[str]:
        """The arguments in the limit's name."""
        return ARGUMENT.findall(self.name)

    @property
    def numbers(self) -> dict[str, float]:
        """The limit's numbers as a release records them."""
        if self.at_once is not None:
            return {"at_once": self.at_once}
        assert self.most is not None
        assert self.per is not None
        return {"most": self.most, "per_seconds": self.per.total_seconds()}

    def __str__(self) -> str:
        size = f"{self.at_once} at once" if self.at_once is not None else f"{self.most} per {self.per}"
        return f"{self.name}: {size}"

    def filled(self, args: Mapping[str, Any]) -> str:
        """Return the limit's name for a run with these arguments, JSON values. Raises KeyError if one is missing."""
        return shortened(ARGUMENT.sub(lambda found: in_name(args[found[1]]), self.name))


def shortened(name: str) -> str:
    """Return a filled name as it is stored: a long name is cut and gets a hash."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 33]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def may_fill(declared: str, name: str) -> bool:
    """Return whether the stored ``name`` may result from ``declared``, filled with values of arguments."""
    literals = [re.escape(part) for part in NOT_ARGUMENTS.split(declared)]
    pattern = ".*".join(literals) if len(name) < LONGEST_NAME else f"{literals[0]}.*"
    return re.fullmatch(pattern, name, re.DOTALL) is not None


def in_name(value: Any) -> str:
    """Return a JSON value as a part of a name."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


@lru_cache(maxsize=10_000)
def defaults(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the defaults of a function's parameters as JSON values. Leave out parameters without a default."""
    parameters = inspect.signature(function).parameters.items()
    found = {name: each.default for name, each in parameters if each.default is not inspect.Parameter.empty}
    return {name: json.loads(to_json(value, fallback=str)) for name, value in found.items()}


def limit_problems(limits: object, parameters: Sequence[str]) -> list[str]:
    """Return the problems with the option ``limits`` of a job with these parameters."""
    if not isinstance(limits, tuple) or not all(isinstance(each, Limit) for each in limits):
        return [f"limits={limits!r} must be a list of Limit(name, at_once=…) or Limit(name, most=…, per=…)"]
    names = [each.name for each in limits]
    twice = sorted({repr(name) for name in names if names.count(name) > 1})
    problems = [f"limits: {', '.join(twice)} must be given once only"] if twice else []
    return problems + [f"limits: {problem}" for each in limits for problem in _problems(each, parameters)]


def _problems(limit: Limit, parameters: Sequence[str]) -> list[str]:
    if not isinstance(limit.name, str) or not NAME.fullmatch(limit.name):
        return [f"name={limit.name!r} must be 1 to 200 characters, with arguments as {{argument}}"]
    unknown = sorted(set(limit.arguments) - set(parameters))
    problems = [f"{limit.name!r} names {each}, which is not a parameter of the function" for each in unknown]
    return problems + _number_problems(limit)


def _number_problems(limit: Limit) -> list[str]:
    given = [name for name in ("at_once", "most", "per") if getattr(limit, name) is not None]
    if given == ["at_once"]:
        return _is_count(limit, "at_once", LARGEST_AT_ONCE)
    if given != ["most", "per"]:
        said = ", ".join(given) or "neither"
        return [f"{limit.name!r} must have either at_once, or most and per; it has {said}"]
    problems = _is_count(limit, "most", LARGEST_MOST)
    if not isinstance(limit.per, timedelta) or not SHORTEST_PER <= limit.per <= LONGEST_PER:
        problems.append(f"{limit.name!r}: per={limit.per!r} must be a timedelta of up to {LONGEST_PER.days} days")
    return problems


def _is_count(limit: Limit, name: str, most: int) -> list[str]:
    value = getattr(limit, name)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return []
    return [f"{limit.name!r}: {name}={value!r} must be a whole number, 1 to {most}"]


def smallest(limits: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return, for each name, the smallest of its numbers, with ``per_second`` instead of ``per_seconds``."""
    found: dict[str, dict[str, float]] = {}
    for name, numbers in limits:
        least = found.setdefault(name, {})
        for number, value in sizes(numbers).items():
            least[number] = min(value, least.get(number, value))
    return found


def sizes(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of one limit for people: ``per_seconds`` is replaced by the rate ``per_second``."""
    if "at_once" in numbers:
        return {"at_once": numbers["at_once"]}
    return {"most": numbers["most"], "per_second": numbers["most"] / numbers["per_seconds"]}


def contradictions(limits: Iterable[tuple[str, str, Mapping[str, float]]]) -> dict[str, list[str]]:
    """Return each name that jobs declare with different numbers, with all jobs that declare the name.

    Each item of ``limits`` is a job, the name of a limit, and its numbers.
    """
    found: dict[str, list[tuple[str, Mapping[str, float]]]] = {}
    for job, name, numbers in limits:
        found.setdefault(name, []).append((job, numbers))
    return {
        name: sorted({job for job, _ in declared})
        for name, declared in found.items()
        if any(numbers != declared[0][1] for _, numbers in declared)
    }
