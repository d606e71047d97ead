"""Points: lots are granted, spent and expire, and the ledger always adds up."""

from datetime import timedelta

import pytest
from expiry_world import A_MOMENT, BEFORE, NOON, POINTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from plugins.expiry import (
    BadInstant,
    BadPoints,
    BadReference,
    InsufficientPoints,
    ReferenceTaken,
    grant_points,
    spend_points,
    spendable_points,
)
from plugins.expiry.models import Base, PointBalance, PointEntry, PointLot
from tests.support.racing import race

DAY = timedelta(days=1)


def balance(session, user_id="ann"):
    return session.scalar(select(PointBalance.points).where(PointBalance.user_id == user_id))


def remaining(session):
    return session.scalars(select(PointLot.remaining).order_by(PointLot.id)).all()


def entries(session):
    rows = select(PointEntry.lot_id, PointEntry.kind, PointEntry.points).order_by(PointEntry.id)
    return [tuple(row) for row in session.execute(rows)]


@pytest.fixture
def lots(session):
    """Give Ann lots of 10, 20 and 30 points, which expire in another order than they were granted."""
    for points, ends in [(10, NOON + 2 * DAY), (20, NOON), (30, NOON + DAY)]:
        grant_points(session, "ann", points, ends, BEFORE)
    session.commit()


def test_a_grant_is_a_lot_an_entry_and_a_balance(session, check_invariants):
    lot_id = grant_points(session, "ann", 10, NOON, BEFORE)
    session.commit()

    lot = session.get_one(PointLot, lot_id)
    assert (lot.user_id, lot.points, lot.remaining, lot.granted_at, lot.expires_at) == ("ann", 10, 10, BEFORE, NOON)
    assert entries(session) == [(lot_id, "granted", 10)]
    assert balance(session) == 10
    check_invariants()


def test_what_expires_first_is_spent_first(session, lots, check_invariants):
    assert spend_points(session, "ann", 25, BEFORE) == 35
    session.commit()

    assert remaining(session) == [10, 0, 25]
    assert entries(session)[3:] == [(2, "spent", -20), (3, "spent", -5)]
    assert balance(session) == 35
    check_invariants()


def test_all_can_be_spent_and_not_one_more(session, lots, check_invariants):
    with pytest.raises(InsufficientPoints, match="user 'ann' has 60 points to spend, and 61 were asked for") as refused:
        spend_points(session, "ann", 61, BEFORE)
    assert refused.value.spendable == 60

    assert spend_points(session, "ann", 60, BEFORE) == 0
    session.commit()
    assert (remaining(session), balance(session)) == ([0, 0, 0], 0)
    check_invariants()


def test_points_past_their_date_are_not_spent_though_no_sweep_has_come_by(session, lots):
    assert spendable_points(session, "ann", NOON - A_MOMENT) == 60
    assert spendable_points(session, "ann", NOON) == 40
    with pytest.raises(InsufficientPoints):
        spend_points(session, "ann", 41, NOON)

    assert spend_points(session, "ann", 40, NOON) == 0
    assert (remaining(session), balance(session)) == ([0, 20, 0], 20)


def test_what_is_left_of_a_lot_expires_with_an_entry_and_off_the_balance(session, lots, check_invariants):
    spend_points(session, "ann", 5, BEFORE)
    session.commit()

    assert POINTS.sweep(session, NOON) == {"expired": 1, "left": 0, "broken": 0, "points": 15}

    assert entries(session)[-1] == (2, "expired", -15)
    assert session.scalars(select(PointEntry.created_at).where(PointEntry.kind == "expired")).all() == [NOON]
    assert (remaining(session), balance(session)) == ([10, 0, 30], 40)
    check_invariants()


def test_a_lot_spent_to_the_last_point_does_not_expire(session, lots):
    spend_points(session, "ann", 20, BEFORE)
    session.commit()

    assert POINTS.sweep(session, NOON)["expired"] == 0


def test_lots_of_several_users_in_one_batch_debit_each(session, check_invariants):
    for user, points in [("ann", 5), ("bob", 7), ("ann", 11), ("cid", 13)]:
        grant_points(session, user, points, NOON, BEFORE)
    session.commit()

    assert POINTS.sweep(session)["points"] == 36
    assert [balance(session, user) for user in ("ann", "bob", "cid")] == [0, 0, 0]
    check_invariants()


def test_a_user_somebody_is_just_spending_for_is_left_to_the_next_run(session, database, lots):
    with database.begin() as holder:
        holder.execute(text("SELECT 1 FROM expiry_point_balances WHERE user_id = 'ann' FOR UPDATE"))
        assert POINTS.sweep(session) == {"expired": 0, "left": 1, "broken": 0, "points": 0}

    assert POINTS.sweep(session)["expired"] == 1


def test_spending_that_rolls_back_spent_nothing(session, lots, check_invariants):
    spend_points(session, "ann", 25, BEFORE)
    session.rollback()

    assert (remaining(session), balance(session), len(entries(session))) == ([10, 20, 30], 60, 3)
    check_invariants()


@pytest.mark.parametrize("points", [0, -1, 1.5, True, "3", None, 10**15 + 1])
def test_points_are_a_whole_number_from_one(session, points):
    with pytest.raises(BadPoints, match=f"bad points={points!r}"):
        grant_points(session, "ann", points, NOON, BEFORE)
    with pytest.raises(BadPoints, match="expected a whole number from 1 to"):
        spend_points(session, "ann", points, BEFORE)


def test_points_that_have_expired_cannot_be_granted(session):
    with pytest.raises(BadInstant, match="bad expires_at="):
        grant_points(session, "ann", 1, NOON, NOON)


def test_somebody_without_points_has_none_to_spend(session):
    with pytest.raises(InsufficientPoints, match="user 'nobody' has 0 points"):
        spend_points(session, "nobody", 1, NOON)
    assert spendable_points(session, "nobody", NOON) == 0


def test_the_database_lets_a_lot_expire_once(session, lots):
    POINTS.sweep(session)
    again = """INSERT INTO expiry_point_entries (user_id, lot_id, kind, points, created_at)
               VALUES ('ann', 2, 'expired', -1, now())"""

    with pytest.raises(IntegrityError, match="expiry_point_entries_once"):
        session.execute(text(again))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.integers(1, 50), st.integers(1, 20)),
        st.tuples(st.just("spend"), st.integers(1, 80), st.just(0)),
        st.tuples(st.just("sweep"), st.integers(1, 3), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_it_does_what_a_list_of_lots_would(database, session, check_invariants, steps):
    """Compared with a model: lots as (end, number, points), spent in this order."""
    session.execute(text(f"TRUNCATE {', '.join(Base.metadata.tables)} RESTART IDENTITY"))
    session.commit()
    model, balance_of_model = [], 0
    for hour, (step, number, length) in enumerate(steps):
        now = NOON + timedelta(hours=hour)
        if step == "grant":
            lot_id = grant_points(session, "ann", number, now + timedelta(hours=length), now)
            model.append([now + timedelta(hours=length), lot_id, number])
            balance_of_model += number
        elif step == "spend":
            live = sorted(lot for lot in model if lot[0] > now)
            if sum(lot[2] for lot in live) < number:
                with pytest.raises(InsufficientPoints):
                    spend_points(session, "ann", number, now)
                continue
            spend_points(session, "ann", number, now)
            balance_of_model -= number
            for lot in live:
                taken = min(lot[2], number)
                lot[2], number = lot[2] - taken, number - taken
        else:
            POINTS.sweep(session, now, batch=number)
            for lot in model:
                if lot[0] <= now:
                    balance_of_model, lot[2] = balance_of_model - lot[2], 0
        session.commit()
        assert (balance(session) or 0) == balance_of_model
        assert remaining(session) == [points for _, _, points in sorted(model, key=lambda lot: lot[1])]
    session.commit()
    check_invariants()


class TestReferences:
    def test_points_are_spent_once_for_a_reference_whichever_lots_they_came_from(self, session, lots, check_invariants):
        assert [spend_points(session, "ann", 25, BEFORE, reference="order 7") for _ in range(3)] == [35, 35, 35]
        session.commit()

        assert entries(session)[3:] == [(2, "spent", -20), (3, "spent", -5)]
        assert set(session.scalars(select(PointEntry.reference).where(PointEntry.kind == "spent"))) == {"order 7"}
        check_invariants()

    def test_a_repeated_request_is_answered_though_the_points_are_gone(self, session, lots):
        spend_points(session, "ann", 60, BEFORE, reference="order 7")

        assert spend_points(session, "ann", 60, BEFORE, reference="order 7") == 0
        with pytest.raises(InsufficientPoints):
            spend_points(session, "ann", 60, BEFORE, reference="order 8")

    def test_points_are_granted_once_for_a_reference_even_after_their_end(self, session, check_invariants):
        first = grant_points(session, "ann", 10, NOON, BEFORE, reference="welcome")

        assert grant_points(session, "ann", 10, NOON, NOON + DAY, reference="welcome") == first
        session.commit()
        assert entries(session) == [(first, "granted", 10)]
        check_invariants()

    def test_of_many_requests_at_once_one_spends(self, session, database, lots, check_invariants):
        def spend() -> int:
            with Session(database) as own, own.begin():
                return spend_points(own, "ann", 10, BEFORE, reference="order 7")

        assert race(*[spend] * 6) == [50] * 6
        assert balance(session) == 50
        check_invariants()

    def test_of_many_first_grants_at_once_one_grants(self, session, database, check_invariants):
        def grant() -> int:
            with Session(database) as own, own.begin():
                return grant_points(own, "bob", 10, NOON, BEFORE, reference="welcome")

        assert len(set(race(*[grant] * 6))) == 1
        assert balance(session, "bob") == 10
        check_invariants()

    def test_a_reference_is_a_users_own_and_of_one_kind(self, session, lots):
        grant_points(session, "bob", 5, NOON, BEFORE, reference="order 7")

        assert spend_points(session, "ann", 5, BEFORE, reference="order 7") == 55
        assert spend_points(session, "bob", 5, BEFORE, reference="order 7") == 0

    def test_a_reference_for_another_number_of_points_is_refused(self, session, lots):
        spend_points(session, "ann", 25, BEFORE, reference="order 7")

        with pytest.raises(ReferenceTaken, match="'order 7' was used for 25 points; expected 25, not 26"):
            spend_points(session, "ann", 26, BEFORE, reference="order 7")

    @pytest.mark.parametrize("reference", ["", "x" * 201, "\0", 7], ids=repr)
    def test_a_reference_that_is_none_is_refused(self, session, lots, reference):
        with pytest.raises(BadReference, match="bad reference; expected a text of 1 to 200"):
            spend_points(session, "ann", 1, BEFORE, reference=reference)
        with pytest.raises(BadReference):
            grant_points(session, "ann", 1, NOON, BEFORE, reference=reference)
