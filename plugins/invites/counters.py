"""Counts redemptions in Redis, and adds the counts to the codes in PostgreSQL, each count once.

**The row of a redemption is the truth.** A code is used up by ``invites_codes.used``, which changes together with these
rows. ``counted`` is a copy for statistics: it never decides who gets a seat.

**How counts move.** ``live`` is a hash in Redis with a count for each code, which applications increase. A run renames
it to ``pending``, with a batch id of its own. A run adds a pending batch to the codes, together with a row of the
batch; if that row is there already, it adds nothing. Afterwards it deletes the pending batch with this id. So a run may
be killed anywhere, and any number may run at the same time.

**When Redis loses its last second** (``appendfsync everysec``), three things may be undone. Increments are lost: the
counter is corrected from the rows. The deletion of a batch is lost: the batch has its row in PostgreSQL already. The
renaming of a batch that PostgreSQL has would count its increments twice, so a batch is added only if it has been
pending for ``SETTLED``. By then it is on the disk.

**The correction.** If no redemption of a code is younger than ``QUIET``, and Redis has no count for it, ``counted``
must be the number of its redemptions. A difference is corrected and reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias, cast
from uuid import UUID, uuid4

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import service_redis
from plugins.invites.models import Code, CounterBatch, Redemption
from plugins.invites.settings import InvitesSettings

if TYPE_CHECKING:  # the import takes 0.1 s, and `rota jobs` does not need it
    import redis

Client: TypeAlias = "redis.Redis"

LIVE, PENDING = "invites:redemptions:live", "invites:redemptions:pending"
#: The fields of ``pending`` that are not codes. Codes are numbers.
BATCH, TAKEN_AT = "batch", "taken_at"
#: Numbers with more digits are too large for PostgreSQL's bigint.
LONGEST_NUMBER = 15
#: A change in Redis is on the disk after this time. Redis writes its log to the disk every second, or later on a busy
#: machine.
SETTLED = timedelta(seconds=5)
#: An increment follows its redemption within this time, or it was lost.
QUIET = timedelta(minutes=5)
#: Batches are remembered for this long. Redis keeps nothing that is older, unless it is restored from a backup.
REMEMBERED = timedelta(days=90)

TAKE = """
if redis.call('EXISTS', KEYS[2]) == 0 then
    if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
    redis.call('RENAME', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[2], 'batch', ARGV[1], 'taken_at', redis.call('TIME')[1])
end
return {redis.call('TIME')[1], redis.call('HGETALL', KEYS[2])}
"""
FORGET = "if redis.call('HGET', KEYS[1], 'batch') == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True, slots=True)
class Taken:
    """A batch of counts that is pending in Redis, with its age."""

    batch: UUID
    age: timedelta
    counts: Mapping[int, int]
    #: How many entries are not the count of a code. Somebody else has written them.
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class Differing:
    """A code whose counter is not the number of its redemptions."""

    code_id: int
    counted: int
    redeemed: int


def client() -> Client:
    """Return this process's connection to the Redis in which redemptions are counted."""
    configured = InvitesSettings.current().redis_url
    return service_redis(configured.get_secret_value() if configured is not None else None)


def count_redemption(code_id: int, redis: "Client | None" = None) -> None:
    """Count a redemption. Call it after the transaction of ``redeem`` has been committed, with its ``code_id``.

    Raises redis.RedisError if Redis cannot be reached. The caller may ignore the error, since the count is corrected
    later.
    """
    (redis or client()).hincrby(LIVE, str(code_id), 1)


def take(redis: Client) -> Taken | None:
    """Return the pending batch. If there is none, make one of the live counts. Return None if nothing was counted."""
    found = cast(list[object], redis.eval(TAKE, 2, LIVE, PENDING, str(uuid4())))
    if not found:
        return None
    now, flat = int(cast(bytes, found[0])), [_text(each) for each in cast(list[bytes], found[1])]
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    batch, taken_at = UUID(fields.pop(BATCH)), int(fields.pop(TAKEN_AT))
    counts = {int(code): int(number) for code, number in fields.items() if _is_count(code) and _is_count(number)}
    return Taken(batch, timedelta(seconds=now - taken_at), counts, len(fields) - len(counts))


def add(session: Session, taken: Taken, now: datetime) -> int:
    """Add a batch to the codes, unless it was added before. Return the sum of its counts, or 0.

    Counts of codes that do not exist are left out.
    """
    row = {"id": taken.batch, "counted": sum(taken.counts.values()), "added_at": now}
    added = insert(CounterBatch).values(row).on_conflict_do_nothing().returning(CounterBatch.counted)
    counted = session.scalar(added)
    if counted is None:
        return 0
    for code_id, number in sorted(taken.counts.items()):
        session.execute(update(Code).where(Code.id == code_id).values(counted=Code.counted + number))
    return counted


def forget(redis: Client, batch: UUID) -> None:
    """Delete a pending batch that PostgreSQL has."""
    redis.eval(FORGET, 1, PENDING, str(batch))


def in_redis(redis: Client) -> set[int]:
    """Return the codes for which Redis has a count."""
    names = [_text(each) for key in (LIVE, PENDING) for each in cast(list[bytes], redis.hkeys(key))]
    return {int(name) for name in names if _is_count(name)}


def differing(session: Session, now: datetime) -> list[Differing]:
    """Return the codes without recent redemptions whose counter is wrong.

    The caller has read from Redis *before* for which codes there is a count that is not added yet.
    """
    rows = select(func.count()).where(Redemption.code_id == Code.id).correlate(Code).scalar_subquery()
    recent = exists().where(Redemption.code_id == Code.id, Redemption.redeemed_at > now - QUIET)
    differences = select(Code.id, Code.counted, rows).where(~recent, Code.counted != rows).order_by(Code.id)
    return [Differing(*row) for row in session.execute(differences)]


def correct(session: Session, wrong: Differing) -> bool:
    """Set a counter to the number of redemptions. Return False if another run has changed it meanwhile."""
    unchanged = (Code.id == wrong.code_id) & (Code.counted == wrong.counted)
    corrected = update(Code).where(unchanged).values(counted=wrong.redeemed).returning(Code.id)
    return session.scalar(corrected) is not None


def prune(session: Session, now: datetime) -> None:
    """Delete the rows of batches that cannot come back."""
    session.execute(delete(CounterBatch).where(CounterBatch.added_at < now - REMEMBERED))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
