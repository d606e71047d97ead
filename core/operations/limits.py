"""Limits: their numbers, their use, and the runs that wait for them."""

from collections.abc import Collection

from sqlalchemy import Connection

from core.jobs.limit import ARGUMENT
from core.ledger import limit_use
from core.ledger.limit_use import Use
from core.observability import redaction
from core.operations.json_shape import Instant, Shape


class LimitUse(Shape):
    """A limit and its use now."""

    #: The name, filled from arguments; as it is declared, if one of these arguments is hidden (``ROTA_REDACT``).
    name: str
    #: The most runs at work at the same time, and how many are; the smallest number of the live releases.
    at_once: int | None
    running: int
    #: The size of the bucket, its refill per second, and how many runs may start now.
    most: float | None
    per_second: float | None
    tokens: float | None
    waiting: int
    closed_until: Instant | None
    closed_reason: str | None


def listed(connection: Connection, most: int) -> list[LimitUse]:
    """Up to ``most`` limits; those with the most waiting runs come first."""
    hidden = redaction.redacted()
    return [shape(use, hidden) for use in limit_use.everything(connection, most)]


def shape(use: Use, hidden: Collection[str]) -> LimitUse:
    """A limit without the values of ``hidden`` arguments."""
    return LimitUse.model_validate({name: getattr(use, name) for name in LimitUse.model_fields} | shown(use, hidden))


def shown(use: Use, hidden: Collection[str]) -> dict[str, str]:
    """Its name, without the values of ``hidden`` arguments."""
    shows = {name.lower() for declared in use.declared for name in ARGUMENT.findall(declared)}
    return {"name": use.declared[0] if shows & {*hidden} else use.name}


def size(use: LimitUse) -> str:
    """Its numbers in a few words."""
    sizes = [f"{use.at_once} at once"] if use.at_once is not None else []
    if use.most is not None and use.per_second is not None:
        sizes.append(f"{use.most:g} per {use.most / use.per_second:g} s")
    return ", ".join(sizes) or "no live process declares it"


def of_run(connection: Connection, run_id: int) -> LimitUse | None:
    """The limit that a run waits for."""
    use = limit_use.of_run(connection, run_id)
    return shape(use, redaction.redacted()) if use is not None else None
