"""``enqueue``, ``send`` and ``publish``, one or many: what a transaction asks for, and gets if it commits."""

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session, scoped_session

from core.errors import BadArguments, RotaError
from core.jobs import arguments
from core.ledger import outbox, runs
from core.ledger.carrier import OutgoingMessage, OutgoingRun
from core.plugins import loading

LONGEST_DELAY = timedelta(days=3660)
#: PostgreSQL's indexes hold entries of up to about 2,700 bytes, and a job's name and a slot are beside it.
LONGEST_KEY = 500


def enqueue(
    session: Session,
    job: str,
    *,
    key: str = "",
    args: Mapping[str, Any] | None = None,
    delay: timedelta = timedelta(0),
) -> int:
    """Have ``job`` run, once, if the caller's transaction commits and not before ``delay`` has passed; return its id.

    The run is a row in the ledger, inserted in that very transaction: rolled back, it never was. ``key`` tells apart
    runs of one job that may go on side by side.

    ``session`` is a SQLAlchemy Session or scoped_session. With an AsyncSession, call
    ``await session.run_sync(enqueue, job, ...)``.

    Raises UnknownJob, with the nearest name; BadArguments, naming what does not fit the job's signature or is wrong
    with ``key`` or ``delay``; RotaError if ``session`` is something else.
    """
    (run_id,) = enqueue_many(session, job, [args or {}], keys=[key], delay=delay)
    return run_id


def enqueue_many(
    session: Session,
    job: str,
    args: Iterable[Mapping[str, Any]],
    *,
    keys: Iterable[str] | None = None,
    delay: timedelta = timedelta(0),
) -> list[int]:
    """``enqueue`` a run of ``job`` for each of ``args``, far faster than one by one; return their ids, in that order.

    ``keys`` are theirs, in the same order; without it all have the same, the empty one. All are inserted in the
    caller's transaction, and their messages are sent together once it commits.

    Raises what ``enqueue`` raises, before anything is inserted; BadArguments also if there are not as many keys.
    """
    session = plain_session(session)
    found = loading.current().job(job)
    if not found.ledger:
        raise BadArguments(f"job {job!r} is on the fast lane (ledger=False), which has no runs; use send")
    check_delay(job, delay)
    bodies = [arguments.encode(found, each) for each in args]
    carrier = outbox.carrier()
    carried = carrier is not None and carrier.carries and not delay
    run_ids = runs.request_many(
        session,
        job,
        keys=checked_keys(job, keys, len(bodies)),
        queue=found.queue,
        args=bodies,
        exclusive=found.exclusive,
        delay=delay,
        carried=carried,
    )
    if carried:
        outbox.of(session).runs.extend(OutgoingRun(run_id, job, found.queue) for run_id in run_ids)
    return run_ids


def plain_session(session: object) -> Session:
    """``session`` itself, or the one that a scoped_session has at present. Raises RotaError if it is neither."""
    found = session() if isinstance(session, scoped_session) else session
    if isinstance(found, Session):
        return found
    kind = type(session)
    if kind.__module__.startswith("sqlalchemy.ext.asyncio"):
        raise RotaError(
            f"session must be a SQLAlchemy Session, and {kind.__name__} is asynchronous; "
            "with an AsyncSession, call `await session.run_sync(enqueue, ...)`, and so with send and publish"
        )
    raise RotaError(f"session must be a SQLAlchemy Session, not {kind.__name__}; `Session(bind=connection)` makes one")


def check_delay(job: str, delay: object) -> None:
    """Raises BadArguments unless ``delay`` is a span that the ledger can add to the present."""
    if not isinstance(delay, timedelta):
        meant = f"timedelta(seconds={delay})" if isinstance(delay, int | float) else "timedelta(minutes=1)"
        raise BadArguments(f"job {job!r}: delay={delay!r} must be a timedelta, such as {meant}")
    if not timedelta(0) <= delay <= LONGEST_DELAY:
        raise BadArguments(f"job {job!r}: delay={delay} must be between 0 and {LONGEST_DELAY.days} days")


def checked_keys(job: str, keys: Iterable[str] | None, count: int) -> list[str]:
    """``keys``, of which there are to be ``count``. Raises BadArguments."""
    if keys is None:
        return [""] * count
    found = list(keys)
    if len(found) != count:
        raise BadArguments(f"job {job!r}: {len(found)} keys were given for {count} runs; give one for each")
    if not all(map(is_key, found)):
        raise BadArguments(f"job {job!r}: key must be a string of at most {LONGEST_KEY} characters, none of them NUL")
    return found


def is_key(key: object) -> bool:
    """Whether ``key`` can be kept and indexed by PostgreSQL."""
    if not isinstance(key, str) or len(key) > LONGEST_KEY or "\0" in key:
        return False
    return key.encode(errors="ignore").decode() == key


def send(session: Session, job: str, *, args: Mapping[str, Any] | None = None) -> None:
    """Send a message to a job of the fast lane once the transaction commits; lost if Redis is away just then.

    Raises UnknownJob; BadArguments; RotaError in a process that has no Redis, such as a plain application.
    """
    send_many(session, job, [args or {}])


def send_many(session: Session, job: str, args: Iterable[Mapping[str, Any]]) -> None:
    """``send`` a message to ``job`` for each of ``args``, all together once the transaction commits.

    Raises what ``send`` raises, and then sends none.
    """
    session = plain_session(session)
    found = loading.current().job(job)
    if found.ledger:
        raise BadArguments(f"job {job!r} has runs in the ledger; use enqueue")
    if outbox.carrier() is None:
        raise RotaError(f"job {job!r} is on the fast lane, and this process has no Redis to send it by")
    values = [json.loads(arguments.encode(found, each)) for each in args]
    outbox.of(session).messages.extend(OutgoingMessage(job, found.queue, each) for each in values)


def publish(session: Session, channel: str, message: dict[str, Any]) -> None:
    """Publish ``message`` as JSON on a Redis channel once the transaction commits; best effort, for who listens now.

    In a process without Redis it goes nowhere: what must not be lost belongs in a table.
    """
    outbox.of(plain_session(session)).publications.append((channel, message))
