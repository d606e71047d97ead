"""Leftovers: old messages and results in Redis that are of no use any more. They can be listed and removed.

Only leftovers that are known to be useless are removed: messages of runs that have ended, messages of the fast lane for
jobs that no release ever had, and results that never expire and that nobody uses. A full clean-up also removes old dead
letters, which no worker uses but which people may want to read. Rows of the ledger are not leftovers: they are deleted
when their retention ends.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import redis
from sqlalchemy import Connection

from core.errors import LeftoversError, UnknownOwner
from core.jobs.registry import Registry
from core.ledger import identity
from core.ledger import leftovers as ledger
from core.ledger.audit import Actor
from core.observability import metrics
from core.observability.events import LeftoversRemoved, emit
from core.operations import access
from core.operations.json_shape import Instant, Shape
from core.operations.redis_fitness import ANOTHER_REDIS
from core.settings import Settings
from core.transport.redis import connect, ownership
from core.transport.redis.leftovers import Leftovers, Old, Place

#: The job that removes leftovers every day, and when a worker has started.
CLEAN_REDIS = "clean-redis"
#: The least time between two searches that starting workers request.
SEARCHES_APART = timedelta(minutes=10)
#: A list names this many leftovers.
SHOWN = 50
#: A list searches Redis for at most this long.
LONGEST_LOOK_SECONDS = 1.5
#: A list has at most this many leftovers.
MOST = 100_000
UNKNOWN_OWNER = (
    "it is not known whose messages this Redis carries: no worker has used it yet, or the role in PostgreSQL may not "
    "call pg_control_system()"
)

#: Returns those of the given jobs that no release ever had.
AskUnknown = Callable[[Connection, Collection[str]], set[str]]


class Kind(StrEnum):
    """The reason why a leftover may be removed."""

    #: Its run has ended, or is not in the ledger any more.
    ENDED = "run ended"
    #: It is a message of the fast lane, and no release ever had its job.
    UNKNOWN_JOB = "unknown job"
    #: It is a result that never expires, and that nobody has used for ``ROTA_STALE_HOURS``.
    RESULT = "result"
    #: It is another dead letter. Only a full clean-up removes it.
    DEAD_LETTER = "dead letter"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something old in Redis, with the reason why it may be removed."""

    kind: Kind
    old: Old


class Count(Shape):
    """The number of leftovers of one kind on one queue, of one job."""

    kind: Kind
    queue: str
    job: str
    messages: int


class Item(Shape):
    """One leftover."""

    kind: Kind
    queue: str
    redis_id: str
    job: str
    run: int | None
    at: Instant | None


class Listed(Shape):
    """The numbers of leftovers in Redis, and the first leftovers."""

    #: Whether the service uses Redis. In local mode there are no messages.
    is_used: bool
    older_than_hours: float
    #: Whether the search has seen everything. If not, there may be more.
    is_complete: bool
    counts: list[Count]
    items: list[Item]
    #: The number of keys and ids in Redis that are left alone, since they are not UTF-8 or contain a NUL.
    no_text: int


class Looked(NamedTuple):
    """The leftovers that a bounded search has found, whether it has seen everything, and the number of names that it
    left alone.
    """

    found: list[Leftover]
    is_complete: bool
    no_text: int


class Found:
    """Reads and removes the leftovers of one ledger. All methods raise LeftoversError if Redis cannot be used."""

    def __init__(
        self, stored: Leftovers, connection: Callable[[], Connection], registry: Registry, stale_seconds: float
    ) -> None:
        """``connection`` returns the connection of the caller's present transaction."""
        self._stored = stored
        self._connection = connection
        self._registry = registry
        self._stale_seconds = stale_seconds

    @property
    def no_text(self) -> int:
        """The number of keys and ids that were left alone, since they are not UTF-8 or contain a NUL."""
        return self._stored.no_text

    def batches(self) -> Iterator[list[Leftover]]:
        """Yield the leftovers in small batches, of which some are empty."""
        before_ms = ledger.before_ms(self._connection(), self._stale_seconds)
        for old in self._stored.old(before_ms, self._stale_seconds):
            yield self.judged(old, ledger.unknown)

    def judged(self, old: Sequence[Old], unknown: AskUnknown) -> list[Leftover]:
        """Return the leftovers among ``old``."""
        ended = ledger.ended(self._connection(), {each.run_id for each in old if each.run_id is not None})
        fast = {each.job for each in old if each.job and each.run_id is None} - self._registry.jobs.keys()
        unknown_jobs = unknown(self._connection(), fast)
        found = ((kind_of(each, ended, unknown_jobs), each) for each in old)
        return [Leftover(kind, each) for kind, each in found if kind is not None]

    def remove(self, found: Sequence[Leftover], by: str) -> list[Leftover]:
        """Remove the items of ``found`` that are still leftovers of the same kind, and return these items.

        Each removal is logged and counted.
        """
        still = set(self.judged([each.old for each in found], ledger.never_had))
        confirmed = [each for each in found if each in still]
        gone = set(self._stored.remove([each.old for each in confirmed], self._stale_seconds))
        removed = [each for each in confirmed if each.old in gone]
        for (kind, queue, job), count in counted(removed).items():
            metrics.leftovers_removed(str(kind), count)
            emit(LeftoversRemoved(str(kind), queue, job, count, by))
        return removed


def kind_of(old: Old, ended: Collection[int], unknown: Collection[str]) -> Kind | None:
    """Return why something old may be removed, or None if it may still be of use."""
    if old.place is Place.RESULTS:
        return Kind.RESULT
    if old.run_id in ended:
        return Kind.ENDED
    if old.run_id is None and old.job in unknown:
        return Kind.UNKNOWN_JOB
    return Kind.DEAD_LETTER if old.place is Place.DEAD_LETTERS else None


def visible(connection: Connection, registry: Registry, configured: Settings, actor: Actor) -> Listed:
    """Return the same as ``listed`` to a person who may see all jobs. Raises Forbidden or LeftoversError."""
    access.check_unlimited(actor, "the list of leftovers")
    return listed(connection, registry, configured)


def listed(connection: Connection, registry: Registry, configured: Settings) -> Listed:
    """Return the numbers of leftovers, and some of them. Changes nothing. Raises LeftoversError."""
    found, is_complete, no_text = look(connection, registry, configured)
    return Listed(
        is_used=uses_redis(configured),
        older_than_hours=configured.stale_hours,
        is_complete=is_complete,
        counts=[
            Count(kind=kind, queue=queue, job=job, messages=count)
            for (kind, queue, job), count in sorted(counted(found).items())
        ],
        items=[item(each) for each in found[:SHOWN]],
        no_text=no_text,
    )


def look(connection: Connection, registry: Registry, configured: Settings) -> Looked:
    """Return the leftovers that a bounded search finds. Raises LeftoversError."""
    #: Redis may return an element of a hash twice, while the hash grows.
    found: dict[Leftover, None] = {}
    if not uses_redis(configured):
        return Looked([], is_complete=True, no_text=0)
    ends_at = time.monotonic() + LONGEST_LOOK_SECONDS
    with opened(lambda: connection, registry, configured) as stored:
        for batch in stored.batches():
            found |= dict.fromkeys(batch)
            if len(found) >= MOST or time.monotonic() > ends_at:
                return Looked(list(found)[:MOST], is_complete=False, no_text=stored.no_text)
        return Looked(list(found), is_complete=True, no_text=stored.no_text)


def clean(
    connection: Callable[[], Connection],
    registry: Registry,
    configured: Settings,
    *,
    by: str,
    checkpoint: Callable[[dict[str, int]], None],
) -> dict[str, int]:
    """Remove all leftovers but dead letters that only a full clean-up removes. Return the numbers by kind, and the
    number of keys and ids that are not text, if there are any.

    ``connection`` returns the connection of the present transaction, which ``checkpoint`` commits. Raises
    LeftoversError.
    """
    removed: Counter[str] = Counter()
    if not uses_redis(configured):
        return {}
    with opened(connection, registry, configured) as stored:
        for batch in stored.batches():
            going = [each for each in batch if each.kind is not Kind.DEAD_LETTER]
            if going:
                removed.update(str(each.kind) for each in stored.remove(going, by))
                checkpoint(dict(removed))
        return dict(removed) | ({"no text": stored.no_text} if stored.no_text else {})


def request_search(connection: Connection, registry: Registry) -> bool:
    """Request a run of the job that removes leftovers, since a worker has started. Return whether it was requested.

    Workers that start together request only one run: no run is requested within ten minutes of another one, or while
    another one waits or runs.
    """
    return CLEAN_REDIS in registry and ledger.request(connection, registry.job(CLEAN_REDIS), SEARCHES_APART)


def uses_redis(configured: Settings) -> bool:
    """Return whether the service uses Redis."""
    return configured.mode != "local" and configured.redis_url is not None


@contextmanager
def opened(connection: Callable[[], Connection], registry: Registry, configured: Settings) -> Iterator[Found]:
    """Yield the leftovers of the ledger of ``connection``. Raises LeftoversError if they are not this ledger's."""
    assert configured.redis_url is not None
    client = connect(configured.redis_url.get_secret_value())
    try:
        refuse_another(ownership.owner(client), identity.of(connection()))
        yield Found(Leftovers(client), connection, registry, configured.stale_hours * 3600)
    except redis.RedisError as error:
        raise LeftoversError(f"Redis cannot be used, and nothing else was removed: {error}") from error
    finally:
        client.close()


def refuse_another(owner: str | None, ledger_id: str | None) -> None:
    """Raise LeftoversError unless Redis is known to carry the messages of this ledger."""
    if owner is None:
        raise UnknownOwner(UNKNOWN_OWNER)
    if ledger_id != owner:
        raise LeftoversError(
            f"Redis carries the messages of the ledger {owner}; this one is {ledger_id}: {ANOTHER_REDIS}"
        )


def counted(found: Sequence[Leftover]) -> Counter[tuple[Kind, str, str]]:
    """Return the numbers of leftovers by kind, queue and job."""
    return Counter((each.kind, each.old.queue, each.old.job) for each in found)


def item(found: Leftover) -> Item:
    """Return a leftover as JSON."""
    old = found.old
    at = None if old.at_ms is None else datetime.fromtimestamp(old.at_ms / 1000, UTC)
    return Item(kind=found.kind, queue=old.queue, redis_id=old.redis_id, job=old.job, run=old.run_id, at=at)


def packed(found: Leftover) -> str:
    """Return a leftover as a text."""
    old = found.old
    told = [found.kind, old.place, old.queue, old.redis_id, old.job, old.run_id, old.at_ms, old.result_keys]
    return json.dumps(told)


def unpacked(text: str) -> Leftover:
    """Return the leftover of which ``packed`` made ``text``."""
    kind, place, queue, redis_id, job, run_id, at_ms, result_keys = json.loads(text)
    return Leftover(Kind(kind), Old(Place(place), queue, redis_id, job, run_id, at_ms, tuple(result_keys)))
