"""The rows of schedules made at run time: added, changed, removed, paused and resumed in the caller's transaction.

A row describes its slots as a function of time alone: they are the slots of its interval or cron expression, each later
by its *phase*, which spreads the keys of a job over the interval. Only the dispatcher applies a change
(``core/ledger/key_standings.py``). It knows up to which time it has accounted for the job's slots, while a statement
does not know when its transaction will commit. So a change is written beside the present schedule, as ``next_spec``,
``stretch`` or a pause, with ``is_seen`` false.
"""

import json
import zlib
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Row
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.ledger.runs import in_schema

#: The reason of slots that were queued when their schedule was removed.
UNSCHEDULED = "unscheduled"
#: This many phases are examined for a new key.
CANDIDATES = 16
#: The distance between two candidates, as a part of the interval. The golden section spreads the candidates over the
#: whole interval.
STEP = 0.618
#: The most rows that one statement writes.
BATCH = 10_000

COLUMNS = """
    key, id, version, spec, every_seconds, spread_seconds, phase, next_spec, next_every_seconds, next_spread_seconds,
    next_phase, CAST(args AS text) AS args, priority, subject, plugin, since, coalesce(next_spec, spec) AS last_spec,
    CASE WHEN next_spec IS NULL THEN spread_seconds ELSE next_spread_seconds END AS last_spread_seconds
"""
LOCK = f"""
    SELECT {COLUMNS} FROM ledger.rota_key_schedules WHERE job = :job AND key = ANY(CAST(:keys AS text[]))
    ORDER BY key FOR NO KEY UPDATE
"""  # noqa: S608 — constants
ALL = f"SELECT {COLUMNS} FROM ledger.rota_key_schedules WHERE job = :job"  # noqa: S608 — constants

#: Counts the keys with each phase of an interval.
PHASES = """
    SELECT phase, count(*) AS keys FROM (
        SELECT phase FROM ledger.rota_key_schedules WHERE job = :job AND every_seconds = :every
        UNION ALL
        SELECT next_phase FROM ledger.rota_key_schedules
        WHERE job = :job AND next_spec IS NOT NULL AND next_every_seconds = :every) AS taken
    GROUP BY phase
"""
#: The most keys that are counted for one phase, among the present phases and among the waiting changes. An exact number
#: is not needed: so many keys are spread evenly by their hashes.
MOST_COUNTED = 100
#: Counts the keys with each of some phases of an interval.
SOME_PHASES = f"""
    SELECT candidate.phase, (
        SELECT count(*) FROM (
            (SELECT 1 FROM ledger.rota_key_schedules AS row
             WHERE job = :job AND every_seconds = :every AND row.phase = candidate.phase LIMIT {MOST_COUNTED})
            UNION ALL
            (SELECT 1 FROM ledger.rota_key_schedules
             WHERE job = :job AND next_spec IS NOT NULL AND next_every_seconds = :every
               AND next_phase = candidate.phase LIMIT {MOST_COUNTED})) AS taken
    ) AS keys FROM unnest(CAST(:phases AS int[])) AS candidate (phase)
"""  # noqa: S608 — a constant

WANTED = """
    unnest(CAST(:keys AS text[]), CAST(:specs AS text[]), CAST(:intervals AS int[]), CAST(:spreads AS int[]),
           CAST(:phases AS int[]), CAST(:args AS text[]), CAST(:priorities AS smallint[]), CAST(:subjects AS text[]),
           CAST(:most_stretches AS smallint[]))
        AS wanted (key, spec, every_seconds, spread_seconds, phase, args, priority, subject, most_stretch)
"""
INSERT = f"""
    INSERT INTO ledger.rota_key_schedules (job, key, plugin, spec, every_seconds, spread_seconds, phase, args, priority,
                                           subject, changed_by)
    SELECT :job, key, :plugin, spec, every_seconds, spread_seconds, phase, CAST(args AS jsonb), priority, subject, :by
    FROM {WANTED}
"""  # noqa: S608 — constants
ADD = f"{INSERT} ON CONFLICT (job, key) DO NOTHING RETURNING key"
#: If there are at least this many new keys, they are first inserted without ON CONFLICT, which takes a third of the
#: time. If one of the keys exists already, all are inserted again with ON CONFLICT.
MANY = 1000

IS_NEXT = "row.since IS NOT NULL AND (wanted.spec, wanted.spread_seconds) <> (row.spec, row.spread_seconds)"
#: A schedule that has never been applied is replaced at once. Otherwise the new schedule waits until the dispatcher
#: sees it. If the new schedule equals the present one, a waiting change is withdrawn.
CHANGE = f"""
    UPDATE ledger.rota_key_schedules AS row SET
        version = version + 1, plugin = :plugin, args = CAST(wanted.args AS jsonb), priority = wanted.priority,
        subject = wanted.subject, changed_by = :by, changed_at = clock_timestamp(),
        spec = CASE WHEN since IS NULL THEN wanted.spec ELSE row.spec END,
        every_seconds = CASE WHEN since IS NULL THEN wanted.every_seconds ELSE row.every_seconds END,
        spread_seconds = CASE WHEN since IS NULL THEN wanted.spread_seconds ELSE row.spread_seconds END,
        phase = CASE WHEN since IS NULL THEN wanted.phase ELSE row.phase END,
        stretch = least(row.stretch, wanted.most_stretch),
        next_spec = CASE WHEN {IS_NEXT} THEN wanted.spec END,
        next_every_seconds = CASE WHEN {IS_NEXT} THEN wanted.every_seconds END,
        next_spread_seconds = CASE WHEN {IS_NEXT} THEN wanted.spread_seconds END,
        next_phase = CASE WHEN {IS_NEXT} THEN wanted.phase END,
        is_seen = is_seen AND NOT ({IS_NEXT}) AND row.stretch <= wanted.most_stretch
    FROM {WANTED} WHERE row.job = :job AND row.key = wanted.key
"""  # noqa: S608 — constants

#: Ends the slots that no worker has started. A slot that another transaction has locked is about to be claimed. The
#: check after the claim skips it (``core/ledger/key_checks.py``).
REMOVE = f"""
    WITH gone AS (
        DELETE FROM ledger.rota_key_schedules WHERE job = :job AND key = ANY(CAST(:keys AS text[]))
        RETURNING key, spec, phase, stretched, extra_at, since
    ), noted AS (
        INSERT INTO ledger.rota_key_schedule_log (job, key, action, spec, phase, stretched, extra_at, by)
        SELECT :job, key, 'removed', spec, phase, stretched, extra_at, :by FROM gone WHERE since IS NOT NULL
    ), waiting AS MATERIALIZED (
        SELECT run.id FROM gone JOIN ledger.rota_runs AS run ON run.job = :job AND run.key = gone.key
        WHERE run.state IN ('queued', 'retrying') AND (run.exclusive OR run.key <> '')
          AND run.state = 'queued' AND run.slot IS NOT NULL AND run.attempt = 0
        FOR UPDATE OF run SKIP LOCKED
    ), ended AS (
        UPDATE ledger.rota_runs SET state = 'skipped', reason = '{UNSCHEDULED}', finished_at = clock_timestamp()
        WHERE id IN (SELECT id FROM waiting)
    )
    SELECT key FROM gone
"""  # noqa: S608 — constants

PAUSE = """
    UPDATE ledger.rota_key_schedules SET
        paused_at = clock_timestamp(), paused_until = coalesce(CAST(:until AS timestamptz), 'infinity'),
        paused_by = :by, pause_reason = :reason, is_seen = false, version = version + 1
    WHERE job = :job AND key = :key RETURNING paused_at
"""
IS_PAUSED = "coalesce(paused_until > clock_timestamp(), false)"
RESUME = f"""
    UPDATE ledger.rota_key_schedules SET
        paused_until = CASE WHEN {IS_PAUSED} THEN clock_timestamp() ELSE paused_until END,
        paused_by = CASE WHEN {IS_PAUSED} THEN :by ELSE paused_by END,
        is_seen = false, version = version + 1, stretch = 0, failures = 0
    WHERE job = :job AND key = :key AND ({IS_PAUSED} OR failures > 0 OR stretch > 0) RETURNING paused_at
"""  # noqa: S608 — a constant
IS_PAST = "SELECT CAST(:instant AS timestamptz) <= clock_timestamp()"

LIST = """
    SELECT *, nullif(paused_until, 'infinity') AS ends_at, paused_until > clock_timestamp() AS is_paused,
           clock_timestamp() AS now
    FROM ledger.rota_key_schedules
    WHERE job = :job AND key > :after AND (CAST(:keys AS text[]) IS NULL OR key = ANY(:keys))
    ORDER BY key LIMIT :limit
"""

ABOUT = "SELECT reltuples FROM pg_class WHERE oid = CAST('ledger.rota_key_schedules' AS regclass)"
COUNT = "SELECT count(*) FROM (SELECT 1 FROM ledger.rota_key_schedules LIMIT :most) AS counted"
ONE_SYNC = "SELECT pg_advisory_xact_lock(hashtextextended('ledger.rota_key_schedules ' || :job, 0))"


class Wanted(NamedTuple):
    """The wanted schedule of a key, as it is stored."""

    key: str
    spec: str
    #: The interval in seconds; None for cron.
    every_seconds: int | None
    spread_seconds: int
    #: The arguments as JSON.
    args: str
    priority: int | None
    subject: str | None
    #: How many times a back-off may double the time between two slots.
    most_stretch: int

    @property
    def timing(self) -> tuple[str, int]:
        """The schedule and the spread, which determine the slots together with the phase."""
        return self.spec, self.spread_seconds


def timing(row: Row[Any]) -> tuple[str, int]:
    """Return the schedule and the spread of a row, including a change that the dispatcher has not seen yet."""
    return row.last_spec, row.last_spread_seconds


def is_same(row: Row[Any], wanted: Wanted, plugin: str) -> bool:
    """Return whether ``wanted`` changes nothing."""
    return bool(
        row.last_spec == wanted.spec
        and row.last_spread_seconds == wanted.spread_seconds
        and row.priority == wanted.priority
        and row.subject == wanted.subject
        and row.plugin == plugin
        and (row.args == wanted.args or json.loads(row.args) == json.loads(wanted.args))
    )


@dataclass(slots=True)
class Phases:
    """Chooses phases, so that the keys of a job spread evenly over their interval."""

    session: Session
    job: str
    #: For each interval, the number of keys with each phase. When many keys are written, the numbers are read only
    #: once.
    counts: dict[int, Counter[int]] = field(default_factory=dict)
    #: The number of keys with an interval.
    totals: dict[int, int] = field(default_factory=dict)

    def choose(self, wanted: Wanted, *, is_one_of_many: bool) -> int:
        """Return the phase for a key. For a cron schedule, the phase depends only on the key."""
        start = zlib.crc32(f"{self.job}\0{wanted.key}".encode())
        every = wanted.every_seconds
        if every is None:
            return start % wanted.spread_seconds if wanted.spread_seconds else 0
        if not is_one_of_many:
            return least_used(self._some(every, start), start, every, mean=0)
        counts = self._all(every)
        phase = least_used(counts, start, every, mean=self.totals[every] // every)
        counts[phase] += 1
        self.totals[every] += 1
        return phase

    def _all(self, every: int) -> Counter[int]:
        if every not in self.counts:
            self.counts[every] = self._read(PHASES, every)
            self.totals[every] = self.counts[every].total()
        return self.counts[every]

    def _some(self, every: int, start: int) -> Counter[int]:
        return self._read(SOME_PHASES, every, phases=[(start + distance) % every for distance in distances(every)])

    def _read(self, statement: str, every: int, **values: Any) -> Counter[int]:
        found = self.session.execute(in_schema(statement, self.session), {"job": self.job, "every": every, **values})
        return Counter({row.phase: row.keys for row in found})


def least_used(counts: Mapping[int, int], start: int, every: int, *, mean: int) -> int:
    """Return the first candidate that has no more keys than the mean, or else the candidate with the fewest keys."""
    for distance in distances(every):
        if counts[phase := (start + distance) % every] <= mean:
            return phase
    return min(((start + distance) % every for distance in distances(every)), key=counts.__getitem__)


@cache
def distances(every: int) -> list[int]:
    """Return the distance in seconds of each candidate for a phase from the first candidate."""
    return [int(number * every * STEP) for number in range(CANDIDATES)]


@dataclass(frozen=True, slots=True)
class Written:
    """The effect of a write: how many schedules were added, and for which keys the timing or other parts changed."""

    added: Sequence[str]
    retimed: Sequence[str]
    changed: Sequence[str]


def put(
    session: Session,
    job: str,
    plugin: str,
    wanted: Sequence[Wanted],
    *,
    by: str,
    known: Container[str] | None = None,
) -> Written:
    """Add or change schedules in the caller's transaction. ``wanted`` must not have a key twice.

    ``known`` are the keys that already have schedules; None if the caller does not know.
    """
    added: list[str] = []
    retimed: list[str] = []
    changed: list[str] = []
    phases = Phases(session, job)
    wanted = sorted(wanted)  # the index is written faster in its own order
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        rows = locked(session, job, [each.key for each in batch if known is None or each.key in known])
        new = [each for each in batch if each.key not in rows]
        there = _add(session, job, plugin, new, [_phase(phases, each, None, batch) for each in new], by)
        added += there
        rows |= locked(session, job, {each.key for each in new}.difference(there) if len(there) < len(new) else ())
        other = [each for each in batch if each.key in rows and not is_same(rows[each.key], each, plugin)]
        _write(session, CHANGE, job, plugin, other, [_phase(phases, each, rows[each.key], batch) for each in other], by)
        retimed += [each.key for each in other if timing(rows[each.key]) != each.timing]
        changed += [each.key for each in other]
    return Written(added, retimed, changed)


def locked(session: Session, job: str, keys: Collection[str]) -> dict[str, Row[Any]]:
    """Return the rows of these keys, by key, and lock them until the transaction ends."""
    if not keys:
        return {}
    rows = session.execute(in_schema(LOCK, session), {"job": job, "keys": list(keys)})
    return {row.key: row for row in rows.all()}


def every_row(session: Session, job: str) -> dict[str, Row[Any]]:
    """Return the rows of a job, by key."""
    return {row.key: row for row in session.execute(in_schema(ALL, session), {"job": job}).all()}


def _phase(phases: Phases, wanted: Wanted, row: Row[Any] | None, batch: Sequence[Wanted]) -> int:
    """Return the phase of the row if its timing stays, and a new phase otherwise."""
    if row is not None and wanted.timing == timing(row):
        return int(row.phase if row.next_spec is None else row.next_phase)
    return phases.choose(wanted, is_one_of_many=len(batch) > 1)


def _add(
    session: Session, job: str, plugin: str, wanted: Sequence[Wanted], phases: Sequence[int], by: str
) -> Collection[str]:
    """Insert the rows of these keys. Return the keys, without those that another transaction has added meanwhile."""
    if len(wanted) >= MANY and not is_autocommit(session):
        with suppress(IntegrityError), session.connection().begin_nested():
            _write(session, INSERT, job, plugin, wanted, phases, by)
            return [each.key for each in wanted]
    return _write(session, ADD, job, plugin, wanted, phases, by)


def is_autocommit(session: Session) -> bool:
    """Return whether each statement of the session is a transaction of its own, so that there are no savepoints."""
    return bool(getattr(session.connection().connection.dbapi_connection, "autocommit", False))


def _write(
    session: Session, statement: str, job: str, plugin: str, wanted: Sequence[Wanted], phases: Sequence[int], by: str
) -> list[str]:
    """Execute INSERT, ADD or CHANGE. Return the keys that ADD has added."""
    if not wanted:
        return []
    columns = {
        "keys": array([each.key for each in wanted]),
        "specs": array([each.spec for each in wanted]),
        "intervals": array([each.every_seconds for each in wanted]),
        "spreads": array([each.spread_seconds for each in wanted]),
        "phases": array(phases),
        "args": array([each.args for each in wanted]),
        "priorities": array([each.priority for each in wanted]),
        "subjects": array([each.subject for each in wanted]),
        "most_stretches": array([each.most_stretch for each in wanted]),
    }
    found = session.execute(in_schema(statement, session), {"job": job, "plugin": plugin, "by": by, **columns})
    return list(found.scalars()) if found.returns_rows else []  # type: ignore[attr-defined]


def array(values: Sequence[str | int | None]) -> str:
    """Return the values as the text of a PostgreSQL array.

    psycopg2 would write an array as thousands of constants, which PostgreSQL reads more slowly than one text. Each
    value is written once, however often it occurs.
    """
    known = {value: element(value) for value in set(values)}
    return f"{{{','.join(map(known.__getitem__, values))}}}"


def element(value: str | int | None) -> str:
    """Return a value as an element in the text of an array."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return "NULL" if value is None else str(value)


def remove(session: Session, job: str, keys: Collection[str], *, by: str) -> list[str]:
    """Remove the schedules of these keys, and end their slots that no worker has started.

    Return the keys that had schedules.
    """
    values = {"job": job, "keys": list(keys), "by": by}
    return list(session.execute(in_schema(REMOVE, session), values).scalars())


def pause(session: Session, job: str, key: str, *, by: str, reason: str | None, until: datetime | None) -> bool:
    """Pause the schedule of a key until a time, or until it is resumed. Return False if the key has no schedule."""
    values = {"job": job, "key": key, "by": by, "reason": reason, "until": until}
    return session.execute(in_schema(PAUSE, session), values).first() is not None


def resume(session: Session, job: str, key: str, *, by: str) -> bool:
    """End the pause of a key, and its back-off. Return False if it has neither."""
    return session.execute(in_schema(RESUME, session), {"job": job, "key": key, "by": by}).first() is not None


def is_past(session: Session, instant: datetime) -> bool:
    """Return whether ``instant`` is past, by the database's clock."""
    return bool(session.execute(in_schema(IS_PAST, session), {"instant": instant}).scalar_one())


def listed(
    session: Session, job: str, *, keys: Iterable[str] | None = None, after: str = "", limit: int = 1000
) -> list[Row[Any]]:
    """Return a job's rows with keys after ``after``, in the order of their keys. With ``keys``, return only rows of
    these keys.
    """
    values = {"job": job, "keys": list(keys) if keys is not None else None, "after": after, "limit": limit}
    return list(session.execute(in_schema(LIST, session), values).all())


def has_room(session: Session, count: int, most: int) -> bool:
    """Return whether there may be ``count`` more schedules, of all jobs. Existing schedules are counted only if there
    are many.
    """
    about = float(session.execute(in_schema(ABOUT, session)).scalar_one())
    if about >= 0 and 2 * about + count + BATCH < most:
        return True
    return int(session.execute(in_schema(COUNT, session), {"most": most + 1}).scalar_one()) + count <= most


def one_sync(session: Session, job: str) -> None:
    """Wait until no other transaction syncs the schedules of a job, and let none do so until this transaction ends."""
    session.execute(in_schema(ONE_SYNC, session), {"job": job})
