"""Counts redemptions in some processes, and adds the counts in others, which kill themselves at every point.

``python dying_syncers.py CRASHES INCREMENTS`` starts 4 writers and 3 syncers, prints the number of crashes, and ends
when all writers have ended and there were so many crashes. Each syncer is a new child of a process that has imported
everything, so that a crash takes milliseconds.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from datetime import timedelta

import redis
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from plugins.invites import counters
from plugins.invites.counting import add_counts
from plugins.invites.instants import at

WRITERS, SYNCERS, CODES = 4, 3, 5
#: One run has at most this many points: before and after each command, statement and commit.
POINTS = 26


def main() -> None:
    """Start writers and syncers, and wait for them."""
    crashes, increments = map(int, sys.argv[1:])
    writers = [in_child(lambda n=n: write(increments, n)) for n in range(WRITERS)]
    syncers = [in_child(lambda n=n: sync(crashes // SYNCERS, n)) for n in range(SYNCERS)]
    failed = [child for child in writers + syncers if os.waitpid(child, 0)[1] != 0]
    sys.stdout.write(f"{SYNCERS * (crashes // SYNCERS)}\n")
    sys.stdout.flush()
    sys.exit(bool(failed))


def in_child(work: Callable[[], None]) -> int:
    """Call ``work`` in a child. Return its process id."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 — a child must not return into the parent's code
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return child


def write(increments: int, seed: int) -> None:
    """Count redemptions of several codes."""
    client, dice = redis.Redis.from_url(os.environ["REDIS_URL"]), random.Random(seed)
    for _ in range(increments):
        counters.count_redemption(dice.randint(1, CODES), client)


def sync(crashes: int, seed: int) -> None:
    """Let children sync until so many of them were killed at a point."""
    dice, killed = random.Random(seed), 0
    while killed < crashes:
        point = dice.randrange(POINTS)
        ended = os.waitpid(in_child(lambda point=point: run_until(point)), 0)[1]
        if os.WIFEXITED(ended) and os.WEXITSTATUS(ended):
            raise RuntimeError("a child has failed; perhaps the servers have gone")
        killed += os.WIFSIGNALED(ended)


def run_until(point: int) -> None:
    """Add the counts, as often as it takes to reach the point, and kill this process there."""
    left = iter(range(point, -1, -1))

    def step(*_: object) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    class Stepping(redis.Redis):
        def eval(self, *args: object) -> object:
            step()
            answered = super().eval(*args)
            step()
            return answered

    engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg2"))
    with Session(engine) as session:
        now = at(session, None)
        session.rollback()
        for name in ("before_cursor_execute", "after_cursor_execute"):
            event.listen(engine, name, step)
        for name in ("before_commit", "after_commit"):
            event.listen(session, name, step)
        client = Stepping.from_url(os.environ["REDIS_URL"])
        for _ in range(POINTS):
            add_counts(session, client, now, checkpoint=lambda _: session.commit(), settled=timedelta(0))
            session.commit()


if __name__ == "__main__":
    main()
