"""Eight threads spend, two grant and two sweep at once, for the same users, while another thread checks the sums."""

import random
import threading
from datetime import timedelta

import pytest
from expiry_world import NOON, POINTS, check_points
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from plugins.expiry import InsufficientPoints, grant_points, points, spend_points
from tests.support.racing import race

USERS = ["ann", "bob", "cid", "dan"]
SPENDERS, GRANTERS, SWEEPERS = 8, 2, 2
GRANTS, SPENDINGS = 150, 60
HOUR = timedelta(hours=1)

pytestmark = pytest.mark.slow


def test_the_sums_agree_at_every_commit_and_nobody_waits_in_a_circle(database: Engine):
    """The time advances by an hour with each grant. Lots expire after one to six hours, so that sweeps and spending
    meet.
    """
    clock = {"now": NOON}
    granting = threading.Semaphore(0)
    over = threading.Event()

    def grant(seed: int) -> int:
        dice, granted = random.Random(seed), 0
        with Session(database) as session:
            for _ in range(GRANTS):
                now = clock["now"]
                points = dice.randint(1, 100)
                grant_points(session, dice.choice(USERS), points, now + dice.randint(1, 6) * HOUR, now)
                session.commit()
                granted += points
                clock["now"] = now + HOUR
        granting.release()
        return granted

    def spend(seed: int) -> int:
        dice, spent = random.Random(seed), 0
        with Session(database) as session:
            for _ in range(SPENDINGS):
                points = dice.randint(1, 120)
                try:
                    spend_points(session, dice.choice(USERS), points, clock["now"])
                except InsufficientPoints:
                    session.rollback()
                    continue
                session.commit()
                spent += points
        return spent

    def sweep(seed: int) -> int:
        expired = 0
        with Session(database) as session:
            while not over.is_set():
                counts = POINTS.sweep(session, clock["now"], batch=random.Random(seed).randint(1, 7))
                assert counts["broken"] == 0
                expired += counts["points"]
        return expired

    def check() -> int:
        checks = 0
        with database.connect() as connection:
            while not over.is_set():
                assert check_points(connection) == []
                connection.rollback()
                checks += 1
        return checks

    def end_when_granted() -> int:
        for _ in range(GRANTERS):
            assert granting.acquire(timeout=60)
        over.set()
        return 0

    granters = [lambda seed=seed: grant(seed) for seed in range(GRANTERS)]
    spenders = [lambda seed=seed: spend(seed) for seed in range(SPENDERS)]
    sweepers = [lambda seed=seed: sweep(seed) for seed in range(SWEEPERS)]
    try:
        done = race(*granters, *spenders, *sweepers, check, end_when_granted)
    finally:
        over.set()

    granted, rest = sum(done[:GRANTERS]), done[GRANTERS:]
    spent, expired, checks = sum(rest[:SPENDERS]), sum(rest[SPENDERS:-2]), rest[-2]
    with Session(database) as session:
        assert check_points(session.connection()) == []
        left = session.scalar(text("SELECT sum(points) FROM expiry_point_balances"))
        assert granted == spent + expired + left
        assert spent
        assert expired
        assert checks > 10
        expired += POINTS.sweep(session, clock["now"] + 9 * HOUR)["points"]
        assert granted == spent + expired
        assert check_points(session.connection()) == []


def test_two_spend_the_same_last_points_and_one_of_them_does(database: Engine, check_invariants):
    with Session(database) as session:
        grant_points(session, "ann", 10, NOON, NOON - HOUR)
        session.commit()

    def spend() -> bool:
        with Session(database) as session:
            try:
                spend_points(session, "ann", 7, NOON - HOUR)
            except InsufficientPoints:
                return False
            session.commit()
            return True

    assert sum(race(*[spend] * 8)) == 1
    check_invariants()


def test_eight_grant_to_somebody_new_at_once(database: Engine, check_invariants):
    def grant() -> None:
        with Session(database) as session:
            grant_points(session, "new", 5, NOON, NOON - HOUR)
            session.commit()

    race(*[grant] * 8)

    with Session(database) as session:
        assert session.scalar(text("SELECT points FROM expiry_point_balances")) == 40
    check_invariants()


def test_a_first_grant_that_is_committed_while_somebody_spends_comes_too_late(database: Engine, monkeypatch):
    """A transaction that finds no balance to lock can spend nothing. Otherwise two such transactions would spend the
    first lot twice.
    """
    granting = Session(database)
    grant_points(granting, "ann", 10, NOON, NOON - HOUR)
    read = points._spendable_lots

    def read_after_the_commit(*args):
        granting.commit()
        return read(*args)

    monkeypatch.setattr(points, "_spendable_lots", read_after_the_commit)
    with Session(database) as session, pytest.raises(InsufficientPoints):
        spend_points(session, "ann", 7, NOON - HOUR)
    granting.close()
