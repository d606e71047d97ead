"""No public function takes a time without a zone: PostgreSQL would read it in the connection's zone."""

import pytest
from expiry_world import BEFORE, NOON, SUBJECTS

from core import NaiveTime
from plugins import expiry

NAIVE = NOON.replace(tzinfo=None)
#: Each function is called with a session and a time.
CALLS = {
    "open_task": lambda session, now: expiry.open_task(session, "ann", NOON, now),
    "complete_task": lambda session, now: expiry.complete_task(session, 1, now),
    "cancel_task": lambda session, now: expiry.cancel_task(session, 1, now),
    "issue_coupon": lambda session, now: expiry.issue_coupon(session, "C", "ann", NOON, now),
    "redeem_coupon": lambda session, now: expiry.redeem_coupon(session, "A", "ann", now),
    "issue_invitation_code": lambda session, now: expiry.issue_invitation_code(session, "C", "ann", NOON, now),
    "use_invitation_code": lambda session, now: expiry.use_invitation_code(session, "A", "ann", now),
    "grant_points": lambda session, now: expiry.grant_points(session, "ann", 1, NOON, now),
    "spend_points": lambda session, now: expiry.spend_points(session, "nobody", 1, now),
    "spendable_points": lambda session, now: expiry.spendable_points(session, "ann", now),
}


def test_here_are_all_of_them():
    assert set(CALLS) == {name for name in expiry.__all__ if name.islower()}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_time_without_a_zone_is_refused_and_nothing_changes(session, call):
    expiry.open_task(session, "ann", NOON, BEFORE)
    expiry.issue_coupon(session, "A", "ann", NOON, BEFORE)
    expiry.issue_invitation_code(session, "A", "ann", NOON, BEFORE)
    expiry.grant_points(session, "ann", 5, NOON, BEFORE)
    session.commit()

    with pytest.raises(NaiveTime, match="expected a datetime with a time zone"):
        call(session, NAIVE)

    session.rollback()
    assert [subject.count(session) for subject in SUBJECTS] == [0, 0, 0, 0]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.job.name)
def test_nor_does_a_sweep(session, subject):
    subject.fill(session, 1)

    with pytest.raises(NaiveTime):
        subject.sweep(session, NAIVE)
