"""The faults. Each function injects its fault, yields, and then removes the fault.

A fault yields the pids of the processes that it hits. A fault of a server yields no pids, since it affects all
processes.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import psutil
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.faults import switches
from tests.faults.history import BACKLOG
from tests.faults.proxy import DIRECTIONS
from tests.faults.workload import BACKLOG_QUEUE
from tests.faults.world import Member, World

Pids = frozenset[int]
#: A function of the world, the member that is hit (None for a server) and the random generator.
Inject = Callable[[World, Any, Random], Iterator[Pids]]
NOBODY: Pids = frozenset()
On = Literal["worker", "scheduler", "any", "postgres", "redis"]

#: The leases of a dead process end within 3 s. The dispatcher makes a pass every second. A lost message is sent again
#: after 5 s.
DEATH_SECONDS, PASS_SECONDS, RESEND_SECONDS = 3.0, 1.0, 5.0
CLOCK_ERROR_SECONDS = 60
FILL_BLOCK = 2**20
BACKLOG_RUNS = 20_000


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    name: str
    on: On
    inject: Inject
    #: The shortest and the longest duration, in leases if ``in_leases``, and otherwise in seconds.
    lasts: tuple[float, float]
    in_leases: bool
    #: An interrupted run goes on within these seconds, plus this many leases; None if nothing is promised.
    bound: tuple[float, float] | None
    #: Whether this time is counted from the end of the fault, and not from its beginning.
    counts_from_heal: bool
    wipes_redis: bool

    @property
    def needs_redis(self) -> bool:
        """Whether the fault needs Redis or a scheduler, which local mode does not have."""
        return self.on in {"redis", "scheduler"}

    def seconds(self, dice: Random, lease_seconds: float) -> float:
        """Draw a duration, in seconds."""
        return dice.uniform(*self.lasts) * (lease_seconds if self.in_leases else 1)

    def bound_seconds(self, lease_seconds: float) -> float | None:
        """Return the time within which an interrupted run goes on."""
        return None if self.bound is None else self.bound[0] + self.bound[1] * lease_seconds

    def injected(self, world: World, member: Member | None, dice: Random) -> AbstractContextManager[Pids]:
        """Return a context manager that injects the fault."""
        return contextmanager(self.inject)(world, member, dice)


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    on: On,
    *,
    lasts: tuple[float, float] = (0, 0),
    in_leases: bool = False,
    bound: tuple[float, float] | None = None,
    counts_from_heal: bool = False,
    wipes_redis: bool = False,
) -> Callable[[Inject], Inject]:
    """Register a fault under its name."""

    def register(inject: Inject) -> Inject:
        FAULTS[name] = Fault(name, on, inject, lasts, in_leases, bound, counts_from_heal, wipes_redis)
        return inject

    return register


@fault("worker killed", "worker", bound=(DEATH_SECONDS, 0))
@fault("scheduler killed", "scheduler", bound=(DEATH_SECONDS, 0))
def kill(world: World, member: Member, _dice: Random) -> Iterator[Pids]:
    """Send SIGKILL to the whole process group."""
    pids = member.pids()
    member.signal(signal.SIGKILL)
    yield pids


@fault("worker process killed", "worker", bound=(DEATH_SECONDS, 0))
def kill_process(world: World, member: Member, _dice: Random) -> Iterator[Pids]:
    """Send SIGKILL to the process that works, but not to its parent process of Dramatiq."""
    pids = member.pids()
    for pid in pids - {member.process.pid if member.process else 0} or pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    yield pids


@fault("worker stopped", "worker", lasts=(1, 3))
def stop(world: World, member: Member, _dice: Random) -> Iterator[Pids]:
    """Send SIGTERM, as a deployment does."""
    pids = member.pids()
    if member.process is not None:
        member.process.terminate()
    yield pids


@fault("paused briefly", "any", lasts=(0.2, 0.6), in_leases=True)
@fault("paused past its lease", "any", lasts=(1.4, 2.0), in_leases=True, bound=(DEATH_SECONDS, 1))
def pause(world: World, member: Member, _dice: Random) -> Iterator[Pids]:
    """Send SIGSTOP, and later SIGCONT."""
    pids = member.pids()
    member.signal(signal.SIGSTOP)
    yield pids
    member.signal(signal.SIGCONT)


@fault("connections cut", "any", bound=(DEATH_SECONDS, 0))
def cut(world: World, member: Member, _dice: Random) -> Iterator[Pids]:
    """Reset every connection of one member."""
    pids = member.pids()
    member.postgres.cut()
    member.redis.cut()
    yield pids


@fault("one-way silence", "any", lasts=(0.5, 2.0), in_leases=True, bound=(DEATH_SECONDS, 1))
def silence(world: World, member: Member, dice: Random) -> Iterator[Pids]:
    """Block one direction of the connections to PostgreSQL, to Redis, or to both."""
    pids = member.pids()
    direction = dice.choice(DIRECTIONS)
    proxies = dice.choice([[member.postgres], [member.redis], [member.postgres, member.redis]])
    for proxy in proxies:
        proxy.silence(direction)
    yield pids
    for proxy in proxies:
        proxy.heal()


@fault("slow network", "any", lasts=(3, 8))
def delay(world: World, member: Member, dice: Random) -> Iterator[Pids]:
    """Delay the data of each connection to PostgreSQL in both directions."""
    pids = member.pids()
    member.postgres.delay_seconds = dice.uniform(0.05, 0.3)
    yield pids
    member.postgres.heal()


@fault("clock wrong by a minute", "any", lasts=(3, 10))
def shift_clock(world: World, member: Member, dice: Random) -> Iterator[Pids]:
    """Set one process's clock a minute forward or back, and later correct it."""
    path = switches.clock_file(world.switches, member.name)
    path.write_text(str(dice.choice([-1, 1]) * CLOCK_ERROR_SECONDS))
    yield member.pids()
    path.write_text("0")


@fault("two dispatchers", "worker", lasts=(3, 10))
def usurp(world: World, member: Member, _dice: Random) -> Iterator[Pids]:
    """Make one more process believe that it leads."""
    path = switches.usurper_file(world.switches, member.name)
    path.touch()
    yield member.pids()
    path.unlink(missing_ok=True)


@fault("Redis wiped", "redis", bound=(RESEND_SECONDS + 2 * PASS_SECONDS, 0), wipes_redis=True)
def wipe_redis(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Delete everything in Redis with FLUSHALL."""
    world.fleet.redis.flushall()
    yield NOBODY


@fault("Redis restarted", "redis", lasts=(1, 6), bound=(RESEND_SECONDS + 3, 0), counts_from_heal=True, wipes_redis=True)
def restart_redis(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Kill Redis, and start it some seconds later. It may lose the data of the last second."""
    world.servers.redis.kill()
    yield NOBODY
    world.servers.redis.start()


@fault("Redis away", "redis", lasts=(7, 12), bound=(RESEND_SECONDS + 3, 0), counts_from_heal=True, wipes_redis=True)
def stop_redis(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Stop Redis for so long that workers take runs directly from the ledger."""
    world.servers.redis.kill()
    yield NOBODY
    world.servers.redis.start()


@fault("PostgreSQL restarted", "postgres", lasts=(0.5, 4), bound=(3, 0), counts_from_heal=True)
def restart_postgres(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Shut PostgreSQL down in mode fast, and start it some seconds later."""
    world.servers.postgres.stop()
    yield NOBODY
    world.servers.postgres.start()


@fault("PostgreSQL crashed", "postgres", lasts=(0, 3), bound=(3, 0), counts_from_heal=True)
def crash_postgres(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Kill all processes of PostgreSQL, and start it some seconds later. It recovers from its log."""
    world.servers.postgres.kill()
    yield NOBODY
    world.servers.postgres.start()


@fault(
    "PostgreSQL stalled", "postgres", lasts=(1.2, 1.8), in_leases=True, bound=(DEATH_SECONDS, 1), counts_from_heal=True
)
def stall_postgres(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Send SIGSTOP to all processes of PostgreSQL, and later SIGCONT. A disk that hangs has the same effect."""
    main = psutil.Process(world.servers.postgres.pid)
    stopped = [main, *main.children(recursive=True)]
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    yield NOBODY
    for process in reversed(stopped):
        with suppress(psutil.NoSuchProcess):
            process.resume()


#: Ends the idle connections of pools. Other idle connections have executed another statement last.
END_IDLE = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE starts_with(application_name, 'rota:') AND state = 'idle' AND query IN ('COMMIT', 'ROLLBACK')
"""
ADMIT = "UPDATE pg_database SET datallowconn = {} WHERE datname = current_database()"


@fault("PostgreSQL admits nobody", "postgres", lasts=(1, 4), bound=(6, 0), counts_from_heal=True)
def admit_nobody(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Refuse new connections, and end idle connections of pools. Other connections to the ledger stay open."""
    with world.connection() as connection:
        connection.exec_driver_sql(ADMIT.format("false"))
        try:
            connection.exec_driver_sql(END_IDLE)
            yield NOBODY
        finally:
            connection.exec_driver_sql(ADMIT.format("true"))


@fault("PostgreSQL's sessions ended", "postgres", bound=(3, 0), counts_from_heal=True)
def end_sessions(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """End all connections to this database."""
    with suppress(DBAPIError), world.connection() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    yield NOBODY


@fault("disk full", "postgres", lasts=(2, 5), bound=(5, 0), counts_from_heal=True)
def fill_disk(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Fill the file system of the ledger, so that PostgreSQL has no room for its write-ahead log."""
    filler = world.servers.folder / "disk" / "filler"
    fill(filler)
    with suppress(DBAPIError), world.connection() as connection:
        for _ in range(3):
            connection.exec_driver_sql("SELECT pg_switch_wal()")
            fill(filler)
    yield NOBODY
    filler.unlink()
    world.servers.start()


def fill(path: os.PathLike[str]) -> None:
    """Write to a file until the file system is full."""
    with suppress(OSError), open(path, "ab", buffering=0) as filler:
        while filler.write(bytes(FILL_BLOCK)):
            pass


LOCKS = {
    "runs": "SELECT 1 FROM rota_runs WHERE state IN ('queued', 'retrying', 'running') FOR UPDATE",
    "processes": "SELECT 1 FROM rota_processes FOR UPDATE",
    "table": "LOCK TABLE rota_runs IN SHARE ROW EXCLUSIVE MODE",
}


@fault("ledger locked", "postgres", lasts=(0.2, 0.6), in_leases=True, bound=(3, 0), counts_from_heal=True)
def lock_rows(world: World, _member: None, dice: Random) -> Iterator[Pids]:
    """Hold locks on rows of the ledger, or on the whole table of runs."""
    statement = LOCKS[dice.choice(sorted(LOCKS))]
    with world.connection() as connection:
        connection.exec_driver_sql("SET lock_timeout = '2s'")
        with suppress(DBAPIError):
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql(statement)
        yield NOBODY
        connection.exec_driver_sql("ROLLBACK")


@fault("subjects away", "postgres", lasts=(0.5, 2))
def take_subjects_away(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Rename the table of the subjects for a while, as a migration might."""
    with world.connection() as connection:
        connection.exec_driver_sql("ALTER TABLE fault_subjects RENAME TO fault_subjects_away")
        yield NOBODY
        connection.exec_driver_sql("ALTER TABLE fault_subjects_away RENAME TO fault_subjects")


FILL_BACKLOG = text("""
    INSERT INTO rota_runs (job, queue, exclusive, due_at)
    SELECT 'backlog', :queue, false, clock_timestamp() - interval '1 hour' FROM generate_series(1, :runs)
""")
CLEAR_BACKLOG = text("DELETE FROM rota_runs WHERE job = 'backlog'")


@fault(BACKLOG, "postgres", lasts=(4, 8))
def pile_up(world: World, _member: None, _dice: Random) -> Iterator[Pids]:
    """Insert very many due runs of a queue that no worker serves, and delete them later."""
    with world.connection() as connection:
        connection.execute(FILL_BACKLOG, {"queue": BACKLOG_QUEUE, "runs": BACKLOG_RUNS})
        yield NOBODY
        connection.execute(CLEAR_BACKLOG)


def possible(world: World) -> list[Fault]:
    """Return the faults that can be injected here. The disk can only be filled if PostgreSQL has a file system of its
    own.
    """
    offered = [found for found in FAULTS.values() if not (world.is_local and found.needs_redis)]
    return [found for found in offered if found.name != "disk full" or world.servers.is_small]
