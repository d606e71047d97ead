"""The jobs of flow control in the workload: turns, slots that wait, cancels, deadlines, subjects, Later, and retry
rules.

The arguments of a run say what the run must do, so that the checker knows it.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from random import Random

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from core import Later, Limit, RotaError, Run, Subject, cancel, database, enqueue, enqueue_many, every, job
from tests.faults.traces import KEYS, PATIENCE, QUEUE, SECOND, effect, query

TABLES = """
    CREATE TABLE fault_cancels (id bigserial PRIMARY KEY, run_id bigint NOT NULL, found text NOT NULL);
    CREATE TABLE fault_presences (id bigserial PRIMARY KEY, run_id bigint NOT NULL, token bigint NOT NULL,
        entered_at timestamptz NOT NULL DEFAULT clock_timestamp(), left_at timestamptz);
    CREATE TABLE fault_changes (id bigserial PRIMARY KEY, run_id bigint NOT NULL, seen_by bigint);
    CREATE TABLE fault_subjects (id bigint PRIMARY KEY);
    CREATE TABLE fault_uses (id bigserial PRIMARY KEY, run_id bigint NOT NULL, at_work int NOT NULL);
    CREATE TABLE fault_removed (id bigint PRIMARY KEY);
    CREATE FUNCTION fault_subject(subject bigint) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF to_regclass('fault_subjects') IS NOT NULL THEN
            INSERT INTO fault_subjects VALUES (subject);
        ELSE
            INSERT INTO fault_subjects_away VALUES (subject);
        END IF;
    END $$;
"""
#: The jobs whose runs may be cancelled.
CANCELLED = ["keyed", "turn", "held", "nap", "sweep", "slow-query", "later", "brief", "limited"]
PRIORITIES = [0, 0, 0, 0, 1, 5, 9]
#: The deadline of runs of ``brief``. Three runs of a key are requested at the same time, and each takes a second.
BRIEF = timedelta(seconds=1.5)
#: How long a run that always postpones itself may do so.
PUTTING_OFF = timedelta(seconds=3)
#: A slot that postpones itself waits for longer than a slot may be late in this suite.
SLOT_LATER = timedelta(seconds=7)
LINGER_SECONDS = 0.3
#: At most this many runs of ``limited`` may be at work for each host. ``PACE`` limits the starts of ``paced``.
AT_ONCE, HOSTS = 2, ("alpha", "beta")
PACE = (3, timedelta(seconds=2))
USE = text("""
    INSERT INTO fault_uses (run_id, at_work)
    SELECT :run, count(*) FROM rota_runs WHERE state = 'running' AND job = 'limited' AND args ->> 'host' = :host
""")


class Busy(Exception):
    """An error after which the job is retried."""


class Hopeless(Exception):
    """An error after which the job is not retried."""


@job("turn", queue=QUEUE, overlap="wait", retry_delay=timedelta(0), max_retries=PATIENCE)
def turn(run: Run, how: str = "well") -> None:
    """Runs alone among the runs of its key. Some runs fail once and keep their place. Some postpone themselves and lose
    it.
    """
    effect(run)
    assert run.work.lease is not None
    query(run, 0.2)
    if how == "fails" and run.work.lease.failures == 0:
        raise RuntimeError("failed on purpose")
    if how == "later" and run.attempt == 1:
        raise Later(in_=SECOND)


@job("steady", queue=QUEUE, schedule=every(seconds=2), overlap="wait", retry_delay=3 * SECOND, max_retries=PATIENCE)
def steady(run: Run) -> None:
    """Has slots that wait for each other. Some take longer than the period, and some fail once."""
    effect(run)
    assert run.work.lease is not None
    second = int(run.slot.timestamp()) % 20 if run.slot else 0
    query(run, 3.5 if second == 4 else 0.1)
    if second == 12 and run.work.lease.failures == 0:
        raise RuntimeError("failed on purpose")


@job("postponed", queue=QUEUE, schedule=every(seconds=5), overlap="allow", misfire="skip", max_retries=PATIENCE,
     retry_delay=SECOND)  # fmt: skip
def postponed(run: Run) -> None:
    """Has slots of which some postpone themselves for longer than a slot may be late."""
    effect(run)
    if run.slot and int(run.slot.timestamp()) % 10 == 0 and run.attempt == 1:
        raise Later(in_=SLOT_LATER)


@job("later", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def later(run: Run, always: bool = False) -> None:
    """Postpones itself twice, or always."""
    effect(run)
    if always or run.attempt <= 2:
        raise Later(in_=SECOND / 2, reason="not now")


@job("brief", queue=QUEUE, overlap="wait", retry_delay=2 * SECOND, max_retries=PATIENCE)
def brief(run: Run, fails: bool = False) -> None:
    """Has a deadline, which applies until its first start."""
    effect(run)
    assert run.work.lease is not None
    query(run, 1)
    if fails and run.work.lease.failures == 0:
        raise RuntimeError("failed on purpose")


@job("picky", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE, retry_on=(Busy,),
     dead_on=(Hopeless,))  # fmt: skip
def picky(run: Run, raises: str) -> None:
    """Is retried after some errors only."""
    effect(run)
    assert run.work.lease is not None
    if raises == "busy" and run.work.lease.failures == 0:
        raise Busy
    if raises == "hopeless":
        raise Hopeless
    if raises == "other":
        raise KeyError(raises)


@job("about", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE,
     subject=Subject("fault_subjects", "subject"))  # fmt: skip
def about(run: Run, subject: int) -> None:
    """Has a subject."""
    effect(run)


@job("asker", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def asker(run: Run) -> None:
    """Commits a change, and requests one run that must see the change, unless such a run waits already."""
    effect(run)
    asked = enqueue(run.session, "once", key=KEYS[run.id % 2], unless="waiting")
    run.session.execute(text("INSERT INTO fault_changes (run_id) VALUES (:run)"), {"run": asked})
    query(run, 0.4)


@job("once", queue=QUEUE, overlap="wait", retry_delay=SECOND, max_retries=PATIENCE)
def once(run: Run) -> None:
    """Sees all changes that were committed before its start."""
    effect(run)
    seen = "UPDATE fault_changes SET seen_by = :run WHERE run_id = :run AND seen_by IS NULL"
    run.session.execute(text(seen), {"run": run.id})
    query(run, 0.6)


@job("held", queue=QUEUE, overlap="wait", retry_delay=SECOND, max_retries=PATIENCE)
def held(run: Run) -> None:
    """Records, outside of its session, when it is in its function. After an interruption it takes a while to leave."""
    presence = enter(run)
    try:
        for _ in range(8):
            time.sleep(0.1)
    finally:
        time.sleep(LINGER_SECONDS)
        leave(run, presence)
    effect(run)


def enter(run: Run) -> int:
    """Record that a run is in its function."""
    lease = run.work.lease
    assert lease is not None
    entering = text("INSERT INTO fault_presences (run_id, token) VALUES (:run, :token) RETURNING id")
    with database.autocommit(run.work.engine) as connection:
        return int(connection.execute(entering, {"run": run.id, "token": lease.token}).scalar_one())


def leave(run: Run, presence: int) -> None:
    """Record that a run leaves its function, unless PostgreSQL is away."""
    leaving = text("UPDATE fault_presences SET left_at = clock_timestamp() WHERE id = :id")
    with suppress(SQLAlchemyError), database.autocommit(run.work.engine) as connection:
        connection.execute(leaving, {"id": presence})


@job("limited", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE,
     limits=[Limit("fault:{host}", at_once=AT_ONCE)])  # fmt: skip
def limited(run: Run, host: str) -> None:
    """Has a limit for each host. Records, outside of its session, how many runs of the host are at work."""
    for _ in range(2):
        with database.autocommit(run.work.engine) as connection:
            connection.execute(USE, {"run": run.id, "host": host})
        time.sleep(0.3)
    effect(run)


@job("paced", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE,
     limits=[Limit("fault-pace", most=PACE[0], per=PACE[1])])  # fmt: skip
def paced(run: Run) -> None:
    """Has a limit on the number of starts in a period."""
    effect(run)


VICTIM = text("""
    SELECT id FROM rota_runs WHERE job = ANY(:jobs) AND state IN ('queued', 'retrying', 'running') AND slot IS NULL
    ORDER BY job = 'held' AND state = 'running' AND :prefers DESC, random() LIMIT 1
""")


@job("canceller", queue=QUEUE, overlap="allow", retry_delay=SECOND, max_retries=PATIENCE)
def canceller(run: Run) -> None:
    """Cancels a waiting or running run. Every other time, it prefers a running run that is slow to leave."""
    effect(run)
    values = {"jobs": CANCELLED, "prefers": run.id % 2 == 0}
    victim = run.session.execute(VICTIM, values).scalar_one_or_none()
    if victim is None:
        return
    with suppress(RotaError):  # the run is over by now
        found = cancel(run.session, victim, reason="a fault")
        note = text("INSERT INTO fault_cancels (run_id, found) VALUES (:run, :found)")
        run.session.execute(note, {"run": victim, "found": found})


JOBS = [turn, steady, postponed, later, brief, picky, about, asker, once, held, canceller, limited, paced]
PERIODS = {"steady": 2, "postponed": 5}
REQUESTS = {
    "turn": 8,
    "later": 2,
    "brief": 1,
    "picky": 2,
    "about": 3,
    "asker": 3,
    "held": 4,
    "canceller": 3,
    "limited": 4,
    "paced": 3,
}

Ask = Callable[[Session, str, Random], list[int]]


def ask(session: Session, job: str, key: str, dice: Random) -> list[int]:
    """Request runs of a job, with arguments that are drawn for the job. Return their ids."""
    priority = dice.choice(PRIORITIES)
    if job in ASKS:
        return ASKS[job](session, key, dice)
    return [enqueue(session, job, key=key, priority=priority)]


def ask_turn(session: Session, key: str, dice: Random) -> list[int]:
    """Request some runs of one key, with priorities that must not change their order."""
    hows = dice.choices(["well", "fails", "later"], [4, 1, 1], k=dice.randint(1, 3))
    return [
        enqueue(session, "turn", key=key, args={"how": how}, priority=dice.choice(PRIORITIES), delay=delay(dice))
        for how in hows
    ]


def delay(dice: Random) -> timedelta:
    """Return a delay, which is mostly zero."""
    return dice.choice([timedelta(0), timedelta(0), SECOND])


def ask_later(session: Session, _key: str, dice: Random) -> list[int]:
    """Request a run that postpones itself. A run that always does so has a deadline."""
    always = dice.random() < 0.3
    return [enqueue(session, "later", args={"always": always}, expires=PUTTING_OFF if always else None)]


def ask_brief(session: Session, key: str, dice: Random) -> list[int]:
    """Request more runs than can start before their deadline. The first run often fails."""
    args = [{"fails": number == 0 and dice.random() < 0.6} for number in range(3)]
    return enqueue_many(session, "brief", args, keys=[key] * len(args), expires=BRIEF)


def ask_picky(session: Session, _key: str, dice: Random) -> list[int]:
    """Request a run that raises one of its errors, or none."""
    return [enqueue(session, "picky", args={"raises": dice.choice(["", "busy", "hopeless", "other"])})]


def ask_limited(session: Session, _key: str, dice: Random) -> list[int]:
    """Request some runs of one host."""
    args = {"host": dice.choice(HOSTS)}
    return enqueue_many(session, "limited", [args] * dice.randint(1, 4), priority=dice.choice(PRIORITIES))


def ask_paced(session: Session, _key: str, dice: Random) -> list[int]:
    """Request some runs."""
    return enqueue_many(session, "paced", [{}] * dice.randint(1, 4))


def ask_about(session: Session, _key: str, dice: Random) -> list[int]:
    """Request a run with a subject that exists, that is deleted at once, or that never existed."""
    subject = dice.randrange(1, 2**40)
    kind = dice.choice(["there", "there", "removed", "absent"])
    if kind == "absent":
        subject = -subject
    else:
        session.execute(text("SELECT fault_subject(:id)"), {"id": subject})
    run_id = enqueue(session, "about", args={"subject": subject})
    if kind == "removed":
        session.commit()
        session.execute(text("DELETE FROM fault_subjects WHERE id = :id"), {"id": subject})
        session.execute(text("INSERT INTO fault_removed VALUES (:id)"), {"id": subject})
    return [run_id]


ASKS: dict[str, Ask] = {
    "turn": ask_turn, "later": ask_later, "brief": ask_brief, "picky": ask_picky, "about": ask_about,
    "limited": ask_limited, "paced": ask_paced,
}  # fmt: skip
#: The jobs whose runs have a key.
KEYED = {"keyed", "sweep", "turn", "brief", "held"}
