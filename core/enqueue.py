"""``enqueue``, ``send`` and ``publish``, and their variants for many items. The requests take effect if the transaction
commits.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy.orm import Session, scoped_session

from core.errors import BadArguments, NaiveTime, RotaError
from core.jobs import arguments
from core.jobs.job import HIGHEST_PRIORITY, Job, is_priority
from core.ledger import leases, limit_names, outbox, runs, waiting
from core.ledger.carrier import OutgoingMessage, OutgoingRun
from core.ledger.waiting import Asked
from core.plugins import loading

LONGEST_DELAY = timedelta(days=3660)
#: PostgreSQL's index entries have room for about 2,700 bytes, and the entry has the job's name and the slot too.
LONGEST_KEY = 500


def enqueue(
    session: Session,
    job: str,
    *,
    key: str = "",
    args: Mapping[str, Any] | None = None,
    delay: timedelta = timedelta(0),
    expires: timedelta | datetime | None = None,
    priority: int | None = None,
    unless: Literal["waiting"] | None = None,
) -> int:
    """Request one run of ``job``, at the earliest after ``delay``. Return the id of the run.

    The run is a row of the ledger, inserted in the caller's transaction. If the transaction is rolled back, there is no
    run. ``key`` distinguishes runs of one job that may run at the same time. ``expires`` is a span after the run's due
    time, or an aware time: a run that has not started by then is missed. The default is the job's own ``expires``.
    ``priority`` is 0 to 9; the default is the job's own priority. If ``session`` is the session of a run, the new run
    records which run has enqueued it.

    With ``unless="waiting"``, no run is inserted if a requested run of the same job and key is already waiting and is
    not due later than the new run would be. The id of the waiting run is returned instead. The waiting run keeps its
    own arguments, and starts after the caller's transaction has ended.

    ``session`` is a SQLAlchemy Session or scoped_session. With an AsyncSession, call
    ``await session.run_sync(enqueue, job, ...)``.

    Raises UnknownJob, with the nearest name. Raises BadArguments if an argument does not fit the job's signature, or if
    ``key``, ``delay``, ``expires``, ``priority`` or ``unless`` is invalid. For example, a time that is past is invalid.
    Raises NaiveTime for a time without a time zone. Raises RotaError if ``session`` has another type.
    """
    if unless is not None:
        waiting_id = waiting_run(
            session, job, key=key, args=args, delay=delay, expires=expires, priority=priority, unless=unless
        )
        if waiting_id is not None:
            return waiting_id
    (run_id,) = enqueue_many(session, job, [args or {}], keys=[key], delay=delay, expires=expires, priority=priority)
    return run_id


def waiting_run(
    session: object,
    job: str,
    *,
    key: str,
    args: Mapping[str, Any] | None,
    delay: timedelta,
    expires: timedelta | datetime | None,
    priority: int | None,
    unless: str,
) -> int | None:
    """Return the id of a waiting run that serves this request too, or None if there is no such run.

    The waiting run stays locked until the transaction ends.
    """
    if unless != "waiting":
        raise BadArguments(f"job {job!r}: unless={unless!r} must be 'waiting'")
    session, found = plain_session(session), job_of_ledger(job)
    check_delay(job, delay)
    check_expires(session, job, expires, delay)
    check_priority(job, priority)
    (key,) = checked_keys(job, [key], 1)
    arguments.encode(found, args or {})
    lasting = found.expires if expires is None else expires
    urgency = found.priority if priority is None else priority
    return waiting.lock(session, Asked(job, key, found.queue, found.exclusive, delay, lasting, urgency))


def job_of_ledger(name: str) -> Job:
    """Return the job ``name``. Raises UnknownJob, or BadArguments for a job of the fast lane."""
    found = loading.current().job(name)
    if not found.ledger:
        raise BadArguments(f"job {name!r} is on the fast lane (ledger=False), which has no runs; use send")
    return found


def enqueue_many(
    session: Session,
    job: str,
    args: Iterable[Mapping[str, Any]],
    *,
    keys: Iterable[str] | None = None,
    delay: timedelta = timedelta(0),
    expires: timedelta | datetime | None = None,
    priority: int | None = None,
) -> list[int]:
    """Enqueue a run of ``job`` for each of ``args``, much faster than with ``enqueue``.

    Return the ids of the runs, in order.

    ``keys`` has a key for each run, in the same order. Without ``keys``, every key is empty. All runs are inserted in
    the caller's transaction, and their messages are sent together after it commits. If Redis has no room for some of
    the messages, the dispatcher sends them later.

    Raises the errors of ``enqueue``, before any run is inserted. Also raises BadArguments if the number of keys
    differs.
    """
    session = plain_session(session)
    found = job_of_ledger(job)
    check_delay(job, delay)
    check_expires(session, job, expires, delay)
    check_priority(job, priority)
    bodies = [arguments.encode(found, each) for each in args]
    urgency = found.priority if priority is None else priority
    keys = checked_keys(job, keys, len(bodies))
    subjects = [found.subject.of(json.loads(body)) for body in bodies] if found.subject is not None else None
    sent = 0 if delay else outbox.room(session, found.queue, len(bodies), urgency)
    run_ids: list[int] = []
    for part, carried in ((slice(sent), True), (slice(sent, None), False)):
        run_ids += runs.request_many(
            session,
            job,
            keys=keys[part],
            queue=found.queue,
            args=bodies[part],
            exclusive=found.exclusive,
            delay=delay,
            carried=carried,
            parent_id=lease.run_id if (lease := leases.of(session)) is not None else None,
            expires=found.expires if expires is None else expires,
            priority=urgency,
            limits=limit_names.of(found, map(json.loads, bodies[part])),
            subjects=subjects[part] if subjects is not None else None,
        )
    if sent:
        outbox.of(session).runs.extend(OutgoingRun(run_id, job, found.queue, urgency) for run_id in run_ids[:sent])
    return run_ids


def plain_session(session: object) -> Session:
    """Return ``session`` itself, or the current session of a scoped_session. Raises RotaError for any other type."""
    found = session() if isinstance(session, scoped_session) else session
    if isinstance(found, Session):
        return found
    kind = type(session)
    if kind.__module__.startswith("sqlalchemy.ext.asyncio"):
        raise RotaError(
            f"session must be a SQLAlchemy Session, and {kind.__name__} is asynchronous; "
            "with an AsyncSession, call `await session.run_sync(enqueue, ...)`; the same for send and publish"
        )
    raise RotaError(f"session must be a SQLAlchemy Session, not {kind.__name__}; `Session(bind=connection)` makes one")


def check_delay(job: str, delay: object) -> None:
    """Raise BadArguments unless ``delay`` is a timedelta that the ledger can add to the current time."""
    if not isinstance(delay, timedelta):
        meant = f"timedelta(seconds={delay})" if isinstance(delay, int | float) else "timedelta(minutes=1)"
        raise BadArguments(f"job {job!r}: delay={delay!r} must be a timedelta, such as {meant}")
    if not timedelta(0) <= delay <= LONGEST_DELAY:
        raise BadArguments(f"job {job!r}: delay={delay} must be between 0 and {LONGEST_DELAY.days} days")


def check_expires(session: Session, job: str, expires: object, delay: timedelta) -> None:
    """Raise BadArguments or NaiveTime unless a run with ``delay`` can start before ``expires``."""
    if isinstance(expires, datetime):
        if expires.utcoffset() is None:
            raise NaiveTime(f"job {job!r}: expires={expires!r} has no time zone; give an aware datetime or a timedelta")
        if not runs.is_ahead(session, expires, delay):
            raise BadArguments(f"job {job!r}: expires={expires.isoformat()} is past, or before the run is due")
    elif isinstance(expires, timedelta):
        if not timedelta(0) < expires <= LONGEST_DELAY:
            raise BadArguments(
                f"job {job!r}: expires={expires} must be more than 0 and at most {LONGEST_DELAY.days} days"
            )
    elif expires is not None:
        raise BadArguments(f"job {job!r}: expires={expires!r} must be a timedelta or a datetime with a time zone")


def check_priority(job: str, priority: object) -> None:
    """Raise BadArguments unless ``priority`` is None or a priority that a run may have."""
    if priority is not None and not is_priority(priority):
        raise BadArguments(f"job {job!r}: priority={priority!r} must be a whole number, 0 to {HIGHEST_PRIORITY}")


def checked_keys(job: str, keys: Iterable[str] | None, count: int) -> list[str]:
    """Return ``keys`` as a list. Raises BadArguments unless there are ``count`` valid keys."""
    if keys is None:
        return [""] * count
    found = list(keys)
    if len(found) != count:
        raise BadArguments(f"job {job!r}: {len(found)} keys were given for {count} runs; give one for each")
    if not all(map(is_key, found)):
        raise BadArguments(f"job {job!r}: key must be a string of at most {LONGEST_KEY} characters, none of them NUL")
    return found


def is_key(key: object) -> bool:
    """Return whether PostgreSQL can store and index ``key``."""
    if not isinstance(key, str) or len(key) > LONGEST_KEY or "\0" in key:
        return False
    return key.isascii() or key.encode(errors="ignore").decode() == key


def send(session: Session, job: str, *, args: Mapping[str, Any] | None = None) -> None:
    """Send a message to a job of the fast lane when the transaction commits.

    If Redis cannot be reached at the commit, the message is lost.

    Raises UnknownJob or BadArguments. Raises RotaError in a process without Redis, such as an application.
    """
    send_many(session, job, [args or {}])


def send_many(session: Session, job: str, args: Iterable[Mapping[str, Any]]) -> None:
    """Send a message to ``job`` for each of ``args``, all together when the transaction commits.

    Raises the errors of ``send``. After an error, no message is sent.
    """
    session = plain_session(session)
    found = loading.current().job(job)
    if found.ledger:
        raise BadArguments(f"job {job!r} is not on the fast lane; request a run with enqueue")
    if outbox.carrier() is None:
        raise RotaError(f"job {job!r} is on the fast lane, and this process has no Redis to send its messages")
    values = [json.loads(arguments.encode(found, each)) for each in args]
    outbox.of(session).messages.extend(OutgoingMessage(job, found.queue, each) for each in values)


def publish(session: Session, channel: str, message: dict[str, Any]) -> None:
    """Publish ``message`` as JSON on a Redis channel when the transaction commits, to the present subscribers.

    A message may be lost, and a process without Redis publishes nothing. Keep data that must not be lost in a table.
    """
    outbox.of(plain_session(session)).publications.append((channel, message))
