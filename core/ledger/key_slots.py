"""Inserts the slots of schedules made at run time: one statement finds and inserts the slots of all keys of a job.

An interval has the slots ``t ≡ phase (mod interval)``. A pass of the dispatcher accounts for about a second, in which
one or two phases of each interval are due. The index ``rota_key_schedules_grid`` finds the keys with these phases. So a
pass reads only the rows for which it inserts slots, however many schedules there are. If there are many different
intervals, or if the window is long, the statement reads all rows of the job instead.

The same statement moves the watermark of the job. Slots that get no run, because of an outage or a pause, are counted
in one *gap row* of the job. Their number is calculated, without finding the slots one by one.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, repeat
from typing import Any

from sqlalchemy import Connection, TextClause, text

from core.jobs import grid
from core.jobs.job import Job, Misfire
from core.jobs.registry import scopes
from core.jobs.schedules import SECOND, parse
from core.ledger.processes import KEY_SLOTS_LOCK, LOCK_SPACE

#: The schedule in the watermark of a job whose keys have schedules.
BY_KEY = "by key"
#: With more probes of the index than this, reading all rows is faster.
MOST_PROBES = 2000
#: The largest number of rows that one statement should insert for late slots.
MOST_LATE = 10_000
#: The shortest window of such a statement.
SHORTEST_PART = timedelta(seconds=60)


def seconds_of(instant: datetime) -> int:
    """Return the whole seconds of an instant since the Unix epoch."""
    return int(instant.timestamp() // 1)


@dataclass(frozen=True, slots=True)
class KeyedJob:
    """The options of a job that its slots need, from this process's declaration or from a release's record."""

    name: str
    queue: str
    exclusive: bool
    priority: int
    misfire: Misfire
    grace: timedelta
    cap: int
    #: The scopes of the pauses that would pause the job.
    scopes: Collection[str]

    @classmethod
    def declared(cls, job: Job, held_by: Collection[str]) -> "KeyedJob":
        """Return the options of a job of this process."""
        return cls(
            job.name, job.queue, job.exclusive, job.priority, job.misfire, job.misfire_grace, job.misfire_cap, held_by
        )  # fmt: skip

    @classmethod
    def recorded(cls, name: str, options: Mapping[str, Any]) -> "KeyedJob":
        """Return the options of a job of another process, as its release has recorded them."""
        return cls(
            name,
            options["queue"],
            options["overlap"] != "allow",
            options.get("priority", 0),
            options["misfire"],
            timedelta(seconds=options["misfire_grace_seconds"]),
            options["misfire_cap"],
            scopes(name, options["queue"], options["plugin"]),
        )


ALONE = text("SELECT pg_try_advisory_lock(:space, :lock)")

#: Reads the different intervals of a job, with one index entry for each, and whether the job has cron schedules or
#: changes.
ASK = text("""
    WITH RECURSIVE seen AS (
        (SELECT every_seconds FROM rota_key_schedules WHERE job = :job AND every_seconds IS NOT NULL
         ORDER BY every_seconds LIMIT 1)
        UNION ALL
        SELECT (SELECT row.every_seconds FROM rota_key_schedules AS row
                WHERE row.job = :job AND row.every_seconds > seen.every_seconds ORDER BY row.every_seconds LIMIT 1)
        FROM seen WHERE every_seconds IS NOT NULL
    )
    SELECT ARRAY(SELECT every_seconds FROM seen WHERE every_seconds IS NOT NULL LIMIT :most) AS intervals,
           EXISTS (SELECT 1 FROM rota_key_schedules WHERE job = :job AND every_seconds IS NULL) AS has_cron,
           EXISTS (SELECT 1 FROM rota_key_schedules WHERE job = :job AND NOT is_seen)
           OR EXISTS (SELECT 1 FROM rota_key_schedules
                      WHERE job = :job AND paused_at IS NOT NULL AND paused_until <= :now AND held_since IS NOT NULL)
           OR EXISTS (SELECT 1 FROM rota_key_schedule_log WHERE job = :job AND since IS NULL) AS has_changes
""")

CRONS = text("""
    SELECT spec, max(spread_seconds) AS spread_seconds, max(stretched) AS most_stretched FROM rota_key_schedules
    WHERE job = :job AND every_seconds IS NULL GROUP BY spec ORDER BY spec
""")

RATE = text("""
    SELECT coalesce(sum(1.0 / (CAST(every_seconds AS bigint) << stretched)), 0) FROM rota_key_schedules
    WHERE job = :job AND every_seconds IS NOT NULL AND since IS NOT NULL AND held_since IS NULL
""")

CRON_RATES = text("""
    SELECT spec, stretched, count(*) AS keys FROM rota_key_schedules
    WHERE job = :job AND every_seconds IS NULL AND since IS NOT NULL AND held_since IS NULL GROUP BY spec, stretched
""")

#: The reason of a gap in which no process had the job. The gap has no end until the job is back.
ABSENT = "absent"
END_ABSENCE = text(f"""
    DELETE FROM rota_gaps WHERE job = :job AND key IS NULL AND reason = '{ABSENT}' AND ended_at = 'infinity'
    RETURNING began_at
""")  # noqa: S608 — a constant

COLUMNS = "row.key, row.id, row.args, row.subject, row.priority"
#: The time between two slots of a row, in seconds.
STEP = "(CAST(row.every_seconds AS bigint) << row.stretched)"
IS_GOING = "row.job = :job AND row.since IS NOT NULL AND row.held_since IS NULL"
#: The first second of the window that counts for a row.
FIRST = "greatest(CAST(:first AS bigint), CAST(floor(extract(epoch FROM row.since)) AS bigint) + 1)"


def between(first: str, last: str) -> str:
    """Return how many slots of a row are in these seconds."""
    return f"greatest(({last} - row.phase) / {STEP} - ({first} - 1 - row.phase) / {STEP}, 0)"


PROBED = f"""
    SELECT {COLUMNS}, to_timestamp(due.second) AS slot
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS due (second)
    CROSS JOIN unnest(CAST(:intervals AS int[])) AS possible (every_seconds)
    JOIN rota_key_schedules AS row ON row.job = :job AND row.every_seconds = possible.every_seconds
        AND row.phase = due.second % possible.every_seconds
    WHERE row.since < to_timestamp(due.second) AND row.held_since IS NULL
      AND (row.stretched = 0 OR (due.second - row.phase) % {STEP} = 0)
"""  # noqa: S608 — constants
SCANNED = f"""
    SELECT {COLUMNS}, to_timestamp(due.second) AS slot
    FROM rota_key_schedules AS row CROSS JOIN LATERAL generate_series(
        {FIRST} + ((row.phase - {FIRST}) % {STEP} + {STEP}) % {STEP}, CAST(:last AS bigint), {STEP}) AS due (second)
    WHERE {IS_GOING} AND row.every_seconds IS NOT NULL
"""  # noqa: S608 — constants
#: The slots of cron expressions, without phases, each with the largest stretch with which it comes due.
BASES = """
    unnest(CAST(:specs AS text[]), CAST(:bases AS timestamptz[]), CAST(:stretches AS int[]))
        AS base (spec, slot, stretch)
"""
LATER_BASES = """
    unnest(CAST(:later_specs AS text[]), CAST(:later_bases AS timestamptz[]), CAST(:later_stretches AS int[]))
        AS other (spec, slot, stretch)
"""
#: The slots that may be among the newest of a key, each with one stretch. A slot is among the newest until the slot
#: ``outdated_by`` comes due.
NEWEST_BASES = """
    unnest(CAST(:newest_specs AS text[]), CAST(:newest_bases AS timestamptz[]), CAST(:newest_stretches AS int[]),
           CAST(:outdated_by AS timestamptz[])) AS base (spec, slot, stretch, outdated_by)
"""
PHASE = "row.phase * interval '1 second'"
LATER = "unnest(CAST(:later_firsts AS bigint[]), CAST(:later_lasts AS bigint[])) AS later (first, last)"
#: The condition that a row with an interval has no slot in a later window.
IS_LAST = f"NOT EXISTS (SELECT 1 FROM {LATER} WHERE {between('later.first', 'later.last')} > 0)"  # noqa: S608 — constants
#: The condition that a row with a cron expression has no slot in a later window.
IS_LAST_OF_CRON = f"""
    NOT EXISTS (
        SELECT 1 FROM {LATER_BASES}, {LATER}
        WHERE other.spec = row.spec AND row.stretched <= other.stretch
          AND extract(epoch FROM other.slot) + row.phase BETWEEN later.first AND later.last)
"""  # noqa: S608 — constants
#: The newest slot of each row in the window, unless it has a slot in a later window.
NEWEST = f"""
    SELECT {COLUMNS}, to_timestamp(:last - (:last - row.phase) % {STEP}) AS slot
    FROM rota_key_schedules AS row
    WHERE {IS_GOING} AND row.every_seconds IS NOT NULL AND {between(FIRST, ":last")} > 0 AND {IS_LAST}
"""  # noqa: S608 — constants
CRON = f"""
    SELECT {COLUMNS}, base.slot + {PHASE} AS slot
    FROM {BASES} JOIN rota_key_schedules AS row
        ON row.job = :job AND row.every_seconds IS NULL AND row.spec = base.spec AND row.stretched <= base.stretch
    WHERE {IS_GOING} AND row.since < base.slot + {PHASE} AND base.slot + {PHASE} > :after
      AND base.slot + {PHASE} <= :until
"""  # noqa: S608 — constants
#: The slots in the window that are among the newest of their key at ``newest_at``.
NEWEST_CRON = f"""
    SELECT {COLUMNS}, base.slot + {PHASE} AS slot
    FROM {NEWEST_BASES} JOIN rota_key_schedules AS row
        ON row.job = :job AND row.every_seconds IS NULL AND row.spec = base.spec AND row.stretched = base.stretch
    WHERE {IS_GOING} AND row.since < base.slot + {PHASE} AND base.slot + {PHASE} > :after
      AND base.slot + {PHASE} <= :until AND base.outdated_by + {PHASE} > :newest_at
"""  # noqa: S608 — constants
EXTRA = f"""
    SELECT {COLUMNS}, row.extra_at AS slot FROM rota_key_schedules AS row
    WHERE {IS_GOING} AND row.extra_at > :after AND row.extra_at <= :until
"""  # noqa: S608 — constants
NOTHING = f"SELECT {COLUMNS}, row.extra_at AS slot FROM rota_key_schedules AS row WHERE false"  # noqa: S608 — constants

#: The number of slots of cron expressions in the window. Keys with the same slots are counted together.
CRON_TOTAL = f"""
    SELECT coalesce(sum(row.keys), 0)
    FROM {BASES} JOIN (
        SELECT spec, stretched, phase, greatest(since, :after) AS begins, count(*) AS keys
        FROM rota_key_schedules AS row WHERE {IS_GOING} AND row.every_seconds IS NULL GROUP BY 1, 2, 3, 4
    ) AS row ON row.spec = base.spec AND row.stretched <= base.stretch
    WHERE base.slot + {PHASE} > row.begins AND base.slot + {PHASE} <= :until
"""  # noqa: S608 — constants
#: The number of slots in the window.
TOTAL = f"""
    (SELECT coalesce(sum({between(FIRST, ":last")}), 0) FROM rota_key_schedules AS row
     WHERE {IS_GOING} AND row.every_seconds IS NOT NULL)
    + ({CRON_TOTAL}) + (SELECT count(*) FROM ({EXTRA}) AS extra)
"""  # noqa: S608 — constants

INSERT = """
    INSERT INTO rota_runs (job, key, queue, exclusive, priority, args, subject, schedule_id, slot, due_at)
    SELECT :job, key, :queue, :exclusive, coalesce(priority, :priority), args, subject, id, slot, slot
    FROM kept ORDER BY slot, key
    ON CONFLICT (job, key, slot) WHERE slot IS NOT NULL DO NOTHING
    RETURNING 1
"""
MARK = f"""
    INSERT INTO rota_schedules (job, spec, accounted_until) SELECT :job, '{BY_KEY}', :until
    WHERE :is_due OR EXISTS (SELECT 1 FROM kept)
    ON CONFLICT (job) DO UPDATE SET spec = excluded.spec, accounted_until = excluded.accounted_until
    RETURNING 1
"""  # noqa: S608 — constants


def in_time(*sources: str) -> TextClause:
    """Return the statement that inserts all slots of the window.

    The statement returns how many slots it has inserted, and whether the watermark has moved.
    """
    return text(f"""
        WITH kept AS MATERIALIZED ({" UNION ALL ".join(sources)}), run AS ({INSERT}), mark AS ({MARK})
        SELECT (SELECT count(*) FROM run) AS inserted, EXISTS (SELECT 1 FROM mark) AS is_marked
    """)  # noqa: S608 — constants


def late(kept: str) -> TextClause:
    """Return the statement that inserts the slots ``kept`` of the window and counts the other slots in a gap row.

    A gap that continues stays one gap row.
    """
    return text(f"""
        WITH kept AS MATERIALIZED ({kept}), run AS ({INSERT}), mark AS ({MARK}), left_out AS MATERIALIZED (
            SELECT {TOTAL} - (SELECT count(*) FROM kept) AS slots
        ), grown AS (
            UPDATE rota_gaps AS gap SET ended_at = :until, slots = gap.slots + left_out.slots FROM left_out
            WHERE gap.job = :job AND gap.key IS NULL AND gap.reason = :reason AND gap.ended_at = :after
              AND left_out.slots > 0
            RETURNING 1
        ), begun AS (
            INSERT INTO rota_gaps (job, began_at, ended_at, reason, slots)
            SELECT :job, :after, :until, :reason, slots FROM left_out
            WHERE slots > 0 AND NOT EXISTS (SELECT 1 FROM grown)
        )
        SELECT (SELECT count(*) FROM run) AS inserted, (SELECT slots FROM left_out) AS left_out
    """)  # noqa: S608 — constants


PROBING = in_time(PROBED, EXTRA)
PROBING_WITH_CRON = in_time(PROBED, EXTRA, CRON)
SCANNING_WITH_CRON = in_time(SCANNED, EXTRA, CRON)
LEAVING_OUT = late(NOTHING)
#: The slots that the policy ``latest`` runs: the newest slot of each key.
LATEST = f"""
    SELECT DISTINCT ON (key) *
    FROM ({NEWEST} UNION ALL {EXTRA} AND {IS_LAST} UNION ALL {NEWEST_CRON} AND {IS_LAST_OF_CRON}) AS due
    WHERE slot >= :oldest ORDER BY key, slot DESC
"""  # noqa: S608 — constants
KEEPING_NEWEST = late(LATEST)
#: The slot with which the next part of the window begins.
NEXT_PART = text(f"SELECT slot FROM ({LATEST}) AS found ORDER BY slot OFFSET :most LIMIT 1")  # noqa: S608 — constants
#: Inserts the slots that the policy ``all`` runs: slots within the grace, and of each key only the newest slots up to
#: the cap.
KEEPING_ALL = late(f"""
    SELECT * FROM ({SCANNED} AND to_timestamp(due.second) > to_timestamp(:now_second - :cap * {STEP})
                   UNION ALL {EXTRA} UNION ALL {NEWEST_CRON}) AS due
    WHERE slot >= :oldest
""")  # noqa: S608 — constants


@dataclass(frozen=True, slots=True)
class Asked:
    """The facts that a pass needs about the schedules of a job."""

    #: The different intervals, at most one more than ``MOST_PROBES``.
    intervals: Sequence[int]
    has_cron: bool
    #: Whether there is a change that the dispatcher has not seen yet.
    has_changes: bool


def is_alone(connection: Connection) -> bool:
    """Take ``KEY_SLOTS_LOCK`` for the life of this connection. Return whether the connection has the lock."""
    return bool(connection.execute(ALONE, {"space": LOCK_SPACE, "lock": KEY_SLOTS_LOCK}).scalar_one())


def ask(connection: Connection, job: str, now: datetime) -> Asked:
    """Return the facts about the schedules of a job that a pass needs."""
    row = connection.execute(ASK, {"job": job, "most": MOST_PROBES + 1, "now": now}).one()
    return Asked(row.intervals, row.has_cron, row.has_changes)


@dataclass(frozen=True, slots=True)
class CronKeys:
    """The keys with one cron expression: their longest spread, and their largest stretch."""

    spec: str
    spread: timedelta
    most_stretched: int

    def bases(self, after: datetime, until: datetime) -> Iterator[tuple[str, datetime, int]]:
        """Yield the slots, without phases, that the keys may have in the window.

        Each slot has the largest stretch with which it comes due, or 0 if no key backs off.
        """
        schedule, before = parse(self.spec), None
        for slot in schedule.between(after - self.spread, until):
            stretch = 0
            if self.most_stretched:
                before = before or schedule.latest_at(slot - datetime.resolution)
                stretch, before = grid.stretch_of(before, slot, grid.step(schedule)), slot
            yield self.spec, slot, stretch

    def newest(
        self, most: int, after: datetime, until: datetime, now: datetime
    ) -> Iterator[tuple[str, datetime, int, datetime]]:
        """Yield the slots of the window, without phases, that may be among the ``most`` newest slots of a key at
        ``now``.

        A slot is yielded once for each stretch with which it comes due, together with the slot that comes ``most``
        places later. When the later slot comes due, the slot is no longer among the newest.
        """
        found = list(self.bases(after, now))
        for stretch in range(self.most_stretched + 1):
            slots = [slot for _, slot, largest in found if largest >= stretch]
            for slot, outdated_by in zip(slots, chain(slots[most:], repeat(now + SECOND)), strict=False):
                if slot <= until and outdated_by + self.spread > now:
                    yield self.spec, slot, stretch, outdated_by


@dataclass(frozen=True, slots=True)
class Crons:
    """The different cron expressions of a job."""

    of_keys: Sequence[CronKeys]
    #: The expressions that this process cannot read. Their keys have no slots.
    unreadable: Sequence[str] = ()

    def bases(self, after: datetime, until: datetime, prefix: str = "") -> dict[str, list[Any]]:
        """Return the slots, without phases, that keys may have in the window, as parameters."""
        found = [base for keys in self.of_keys for base in keys.bases(after, until)]
        return _columns([f"{prefix}specs", f"{prefix}bases", f"{prefix}stretches"], found)

    def newest(self, most: int, after: datetime, until: datetime, now: datetime) -> dict[str, Any]:
        """Return the same slots as ``CronKeys.newest``, for all keys, as parameters."""
        found = [base for keys in self.of_keys for base in keys.newest(most, after, until, now)]
        names = ["newest_specs", "newest_bases", "newest_stretches", "outdated_by"]
        return {**_columns(names, found), "newest_at": now}


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


NO_CRONS = Crons([])


def crons(connection: Connection, job: str) -> Crons:
    """Return the cron expressions of a job's keys."""
    rows = connection.execute(CRONS, {"job": job}).all()
    readable = [row for row in rows if grid.is_readable(row.spec)]
    return Crons(
        [CronKeys(row.spec, timedelta(seconds=row.spread_seconds), row.most_stretched) for row in readable],
        unreadable=[row.spec for row in rows if row not in readable],
    )


def _values(job: KeyedJob, after: datetime, until: datetime) -> dict[str, Any]:
    return {
        "job": job.name,
        "queue": job.queue,
        "exclusive": job.exclusive,
        "priority": job.priority,
        "after": after,
        "until": until,
        "first": seconds_of(after) + 1,
        "last": seconds_of(until),
    }


def insert(
    connection: Connection, job: KeyedJob, asked: Asked, found: Crons, after: datetime, until: datetime, *, mark: bool
) -> tuple[int, bool]:
    """Insert every slot of the window. Return how many, and whether the watermark has moved to the end of the window.

    The watermark moves if there was a slot, or if ``mark`` is set.
    """
    values = {**_values(job, after, until), "is_due": mark, "intervals": asked.intervals}
    probes = len(asked.intervals) * (values["last"] - values["first"] + 1)
    statement = PROBING
    if asked.has_cron:
        statement, values = PROBING_WITH_CRON, {**values, **found.bases(after, until)}
    if probes > MOST_PROBES:
        statement, values = SCANNING_WITH_CRON, {**values, **found.bases(after, until)}
    row = connection.execute(statement, values).one()
    return int(row.inserted), bool(row.is_marked)


def leave_out(
    connection: Connection, job: KeyedJob, found: Crons, after: datetime, until: datetime, reason: str
) -> int:
    """Count every slot of the window in a gap row. Return how many. The watermark moves to the end of the window."""
    values = {**_values(job, after, until), **found.bases(after, until), "is_due": True, "reason": reason}
    return int(connection.execute(LEAVING_OUT, values).one().left_out)


def keep_newest(
    connection: Connection,
    job: KeyedJob,
    found: Crons,
    after: datetime,
    until: datetime,
    *,
    oldest: datetime,
    later: Sequence[tuple[datetime, datetime]],
) -> tuple[int, int, datetime]:
    """Insert the newest slot of each key in the window, if it is not before ``oldest``. Count the other slots in a gap
    row.

    ``later`` are the windows in which a newer slot may come. If there are many keys, only a part of the window is
    accounted for. Returns both numbers, and the end of that part, to which the watermark moves.
    """
    ends = max([until, *(end for _, end in later)])
    values = {
        **_values(job, after, until),
        **found.newest(1, max(after, oldest - SECOND), until, until),
        **found.bases(until, ends, "later_"),
        "is_due": True,
        "reason": "outage",
        "oldest": oldest,
        **_spans(later),
    }
    begins: datetime | None = connection.execute(NEXT_PART, {**values, "most": MOST_LATE}).scalar_one_or_none()
    if begins is not None:
        rest = (max(begins - SECOND, after + SECOND), until)
        until = min(rest)
        values |= {"until": until, "last": seconds_of(until), **_spans([rest, *later])}
    row = connection.execute(KEEPING_NEWEST, {**values, **found.bases(after, until)}).one()
    return int(row.inserted), int(row.left_out), until


def _spans(windows: Iterable[tuple[datetime, datetime]]) -> dict[str, list[int]]:
    """Return windows as the first and last seconds of each, as parameters."""
    spans = [(seconds_of(begins) + 1, seconds_of(ends)) for begins, ends in windows]
    return {"later_firsts": [first for first, _ in spans], "later_lasts": [last for _, last in spans]}


def keep_all(
    connection: Connection, job: KeyedJob, found: Crons, after: datetime, until: datetime, *, now: datetime
) -> tuple[int, int]:
    """Insert the slots of the window that are in their grace, but only the newest slots of each key, up to the cap.

    Count the other slots in a gap row. Return both numbers. The watermark moves to the end of the window.
    """
    values = {
        **_values(job, after, until),
        **found.bases(after, until),
        **found.newest(job.cap, max(after, now - job.grace - SECOND), until, now),
        "is_due": True,
        "reason": "outage",
        "oldest": now - job.grace,
        "now_second": seconds_of(now),
        "cap": job.cap,
    }
    row = connection.execute(KEEPING_ALL, values).one()
    return int(row.inserted), int(row.left_out)


def end_absence(connection: Connection, job: KeyedJob, now: datetime) -> int:
    """Count in a gap row the slots that came due while no process had the job. Return how many."""
    began: datetime | None = connection.execute(END_ABSENCE, {"job": job.name}).scalar_one_or_none()
    if began is None or began >= now:
        return 0
    return leave_out(connection, job, crons(connection, job.name), began, now, ABSENT)


def part(connection: Connection, job: KeyedJob, found: Crons, after: datetime, until: datetime) -> datetime:
    """Return the end of a part of the window that has about ``MOST_LATE`` slots."""
    rate = float(connection.execute(RATE, {"job": job.name}).scalar_one())
    if found.of_keys:
        rate += _cron_rate(connection, job, found)
    return min(until, after + max(timedelta(seconds=MOST_LATE / rate), SHORTEST_PART)) if rate else until


def _cron_rate(connection: Connection, job: KeyedJob, found: Crons) -> float:
    """Return how many slots come due in a second, for all keys with cron expressions."""
    steps = {keys.spec: grid.step(parse(keys.spec)) for keys in found.of_keys}
    rows = connection.execute(CRON_RATES, {"job": job.name})
    return sum((row.keys / (steps[row.spec] << row.stretched) for row in rows if row.spec in steps), 0.0)
