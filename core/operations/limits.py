"""Limits: their numbers, their use, and the runs that wait for them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from core.jobs.limit import may_fill
from core.ledger import history, limit_use, releases
from core.ledger.limit_use import Use
from core.ledger.models import WAITING
from core.observability import redaction
from core.operations.json_shape import Instant, Shape
from core.operations.redaction import limit_name


class LimitUse(Shape):
    """A limit and its use now."""

    #: The limit's name, filled from arguments. If one of these arguments is secret, the declared name.
    name: str
    #: The most runs that may be at work at the same time. If live releases differ, the smallest number.
    at_once: int | None
    #: The number of runs that are at work.
    running: int
    #: The size of the token bucket.
    most: float | None
    #: The number of tokens that are refilled per second.
    per_second: float | None
    #: The number of tokens in the bucket now. The start of a run takes one token.
    tokens: float | None
    #: The number of runs that wait for the limit.
    waiting: int
    closed_until: Instant | None
    closed_reason: str | None


@dataclass(frozen=True, slots=True)
class Naming:
    """Shows the names of limits without the values of secret arguments."""

    #: The names of ``ROTA_REDACT`` and of the secret arguments of all jobs, in lower case.
    hidden: frozenset[str]
    #: The limits that any release has declared.
    declared: Collection[str]

    def shape(self, use: Use) -> LimitUse:
        """Return a limit and its use as JSON."""
        declared = use.declared or [each for each in self.declared if may_fill(each, use.name)]
        fields = {field: getattr(use, field) for field in LimitUse.model_fields}
        return LimitUse.model_validate(fields | {"name": limit_name(use.name, declared, self.hidden)})


def listed(connection: Connection, most: int) -> list[LimitUse]:
    """Return up to ``most`` limits. The limits with the most waiting runs come first."""
    secrets = {name.lower() for names in releases.secrets(connection).values() for name in names}
    naming = Naming(redaction.redacted() | secrets, limit_use.declared_ever(connection))
    return [naming.shape(use) for use in limit_use.everything(connection, most)]


def of_run(connection: Connection, run: history.Run) -> LimitUse | None:
    """Return the limit that ``run`` waits for, or None. The secrets of ``run`` must be hidden already."""
    use = limit_use.of_run(connection, run.id) if run.state in WAITING and run.reason == "limit" else None
    return (
        LimitUse.model_validate(use, from_attributes=True).model_copy(update={"name": run.waits_for}) if use else None
    )


def size(use: LimitUse) -> str:
    """Return the numbers of a limit in a few words."""
    return numbers_in_words(use.model_dump()) or "no live process declares it"


def numbers_in_words(numbers: Mapping[str, Any]) -> str:
    """Return the numbers ``at_once``, ``most`` and ``per_second`` in a few words, or an empty text if all are None."""
    at_once, most, per_second = (numbers.get(name) for name in ("at_once", "most", "per_second"))
    sizes = [f"{at_once} at once"] if at_once is not None else []
    if most is not None and per_second is not None:
        sizes.append(f"{most:g} per {most / per_second:g} s")
    return ", ".join(sizes)


def in_words(use: LimitUse) -> str:
    """Return a limit with its numbers and its use, in words."""
    return f"{use.name} ({size(use)}; {use.running} at work)"
