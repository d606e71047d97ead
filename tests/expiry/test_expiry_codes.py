"""Coupons and invitation codes: issued, used before their end, or expired."""

from datetime import timedelta

import pytest
from expiry_world import A_MOMENT, BEFORE, CODES, COUPONS, NOON
from sqlalchemy import select
from sqlalchemy.orm import Session

from plugins.expiry import (
    BadInstant,
    CodeTaken,
    issue_coupon,
    issue_invitation_code,
    redeem_coupon,
    use_invitation_code,
)
from plugins.expiry.models import Coupon, InvitationCode
from tests.support.racing import race

KINDS = [
    (COUPONS, issue_coupon, redeem_coupon, Coupon),
    (CODES, issue_invitation_code, use_invitation_code, InvitationCode),
]

pytestmark = pytest.mark.parametrize(("subject", "issue", "use", "table"), KINDS, ids=["coupon", "invitation code"])


def states(session, table):
    return dict(session.execute(select(table.code, table.state).order_by(table.id)).all())


def test_an_expired_code_says_when_and_cannot_be_used(subject, issue, use, table, session):
    issue(session, "AB", "ann", NOON, BEFORE)
    assert subject.sweep(session, NOON + timedelta(minutes=5)) == {"expired": 1, "left": 0, "broken": 0}

    code = session.scalars(select(table)).one()
    assert (code.state, code.expired_at, code.ends_at) == ("expired", NOON + timedelta(minutes=5), NOON)
    assert not use(session, "AB", "ann", NOON - timedelta(days=1))


def test_a_code_is_used_until_a_moment_before_its_end_and_once(subject, issue, use, table, session):
    issue(session, "AB", "ann", NOON, BEFORE)

    assert use(session, "AB", "ann", NOON - A_MOMENT)
    assert not use(session, "AB", "ann", NOON - A_MOMENT)

    code = session.scalars(select(table)).one()
    assert (code.state, code.used_at, code.expired_at) == ("used", NOON - A_MOMENT, None)
    assert subject.sweep(session)["expired"] == 0


def test_at_its_end_a_code_cannot_be_used_though_no_sweep_has_come_by(subject, issue, use, table, session):
    issue(session, "AB", "ann", NOON, BEFORE)

    assert not use(session, "AB", "ann", NOON)
    assert states(session, table) == {"AB": "active"}


def test_a_code_that_was_never_issued_cannot_be_used(subject, issue, use, table, session):
    assert not use(session, "AB", "ann", NOON)


def test_a_code_is_issued_once(subject, issue, use, table, session):
    issue(session, "AB", "ann", NOON, BEFORE)

    with pytest.raises(CodeTaken, match="'AB' exists already"):
        issue(session, "AB", "bob", NOON, BEFORE)
    assert states(session, table) == {"AB": "active"}


@pytest.mark.parametrize("end", [NOON, NOON.replace(tzinfo=None, year=2030)])
def test_an_end_must_be_an_instant_to_come(subject, issue, use, table, session, end):
    with pytest.raises(BadInstant, match="bad ends_at="):
        issue(session, "AB", "ann", end, NOON)


def test_using_and_sweeping_at_once_one_of_them_wins(subject, issue, use, table, session, database):
    subject.fill(session, 60)
    holders = dict(session.execute(select(table.code, table.user_id)).all())
    codes = list(states(session, table))
    session.commit()

    def use_all() -> int:
        with Session(database) as own:
            used = 0
            for code in reversed(codes):
                used += use(own, code, holders[code], BEFORE)  # a clock that is slow
                own.commit()
            return used

    def sweep() -> int:
        with Session(database) as own:
            return subject.sweep(own, batch=5)["expired"]

    used, expired = race(use_all, sweep)

    assert list(states(session, table).values()).count("used") == used
    session.commit()
    assert used + expired + subject.sweep(session)["expired"] == 60


def test_a_coupon_is_for_its_holder_and_an_invitation_for_anybody(subject, issue, use, table, session):
    issue(session, "AB", "ann", NOON, BEFORE)

    assert use(session, "AB", "bob", BEFORE) is (table is InvitationCode)
    if table is InvitationCode:
        assert session.scalars(select(table.used_by)).one() == "bob"
    else:
        assert use(session, "AB", "ann", BEFORE)
