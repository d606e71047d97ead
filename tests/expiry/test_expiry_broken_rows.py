"""Rows that violate the rules, since the database refuses their end or an older system left them: they stop no other
row, and are named.
"""

from collections.abc import Callable, Iterator

import pytest
from expiry_world import BEFORE, COUPONS, NOON, POINTS, SUBJECTS, TASKS, Subject
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.testing import create_database, drop_database
from plugins.expiry import sweeps
from tests.support.emitted import emitted

NAME = "test_expiry_old_system"

CONSTRAINTS = """
    SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) FROM pg_constraint
    WHERE contype IN ('c', 'f') AND conrelid::regclass::text LIKE 'expiry\\_%'
    UNION ALL
    SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', attrelid::regclass, attname) FROM pg_attribute
    WHERE attname IN ('deadline_at', 'ends_at', 'expires_at', 'remaining', 'owner_id')
      AND attrelid::regclass::text LIKE 'expiry\\_%' AND attrelid IN (SELECT oid FROM pg_class WHERE relkind = 'r')
      AND attrelid <> 'expiry_notifications'::regclass
"""
REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF {condition} THEN RAISE 'not this one'; END IF; RETURN new; END $$;
    CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def postgres_url(template: str) -> Iterator[str]:
    """Yield the URL of a database of this test's own, which the test may change."""
    yield create_database(template, NAME, template=True)
    drop_database(template, NAME)


@pytest.fixture
def old_system(database: Engine) -> None:
    """Drop all constraints, as in an older system."""
    with database.begin() as connection:
        for statement in connection.execute(text(CONSTRAINTS)).scalars().all():
            connection.exec_driver_sql(statement)


@pytest.fixture
def refuse(database: Engine) -> Callable[..., None]:
    """Let a trigger refuse the rows of a table for which a condition holds."""

    def refuse_rows(subject: Subject, condition: str) -> None:
        with database.begin() as connection:
            connection.exec_driver_sql(REFUSE.format(table=subject.table, condition=condition))

    return refuse_rows


every_sweep = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.job.name)


@every_sweep
@pytest.mark.parametrize("end", ["NULL", "'infinity'", "'-infinity'", "'20000-01-01'", "'4000-01-01 BC'"])
def test_the_database_refuses_an_end_that_is_no_date(subject: Subject, session: Session, end: str):
    subject.fill(session, 1)

    with pytest.raises(IntegrityError):
        session.execute(text(f"UPDATE {subject.table} SET {subject.at} = {end}"))


@pytest.mark.parametrize("change", ["remaining = -1", "remaining = points + 1", "points = -5", "remaining = NULL"])
def test_the_database_refuses_a_lot_that_cannot_be(session: Session, change: str):
    POINTS.fill(session, 1)

    with pytest.raises(IntegrityError):
        session.execute(text(f"UPDATE expiry_point_lots SET {change}"))


@every_sweep
@pytest.mark.parametrize("end", ["NULL", "'infinity'", "'20000-01-01'"])
def test_a_left_row_that_never_ends_keeps_no_other_from_it(
    subject: Subject, session: Session, old_system, do, end: str
):
    ids = subject.fill(session, 3)
    do(f"UPDATE {subject.table} SET {subject.at} = {end} WHERE id = :id", id=ids[0])

    counts = subject.sweep(session, batch=1)

    assert counts[subject.word] == 2
    assert counts["broken"] == (end == "NULL")


@every_sweep
@pytest.mark.parametrize("end", ["'-infinity'", "'4000-01-01 BC'", "'0001-01-01'"])
def test_a_left_row_whose_end_python_cannot_read_ends_like_any_other(
    subject: Subject, session: Session, old_system, do, end: str, monkeypatch
):
    monkeypatch.setattr(sweeps, "SLICE", 1)
    ids = subject.fill(session, 3)
    do(f"UPDATE {subject.table} SET {subject.at} = {end} WHERE id = :id", id=ids[1])

    assert subject.sweep(session, batch=1)[subject.word] == 3


def test_a_left_lot_with_less_than_nothing_is_reported_and_never_credited(session, old_system, do, caplog):
    ids = POINTS.fill(session, 3)
    do("UPDATE expiry_point_lots SET remaining = -7 WHERE id = :id", id=ids[0])
    balances = session.execute(text("SELECT sum(points) FROM expiry_point_balances")).scalar_one()
    session.commit()

    counts = POINTS.sweep(session)

    assert counts == {"expired": 2, "left": 0, "broken": 1, "points": 2 + 3}
    after = session.execute(text("SELECT sum(points) FROM expiry_point_balances")).scalar_one()
    assert balances - after == 5
    assert ("expiry_point_lots", str(ids[0])) in refused(caplog)


def test_a_lot_with_more_in_it_than_its_users_balance_is_reported_and_the_others_expire(session, do, caplog):
    ids = POINTS.fill(session, 9)
    do("UPDATE expiry_point_balances SET points = points - 1 WHERE user_id = 'user-4'")

    counts = POINTS.sweep(session)

    assert (counts["expired"], counts["broken"], counts["points"]) == (8, 1, 45 - 5)
    assert str(ids[4]) in named(caplog)
    assert "expiry_point_balances_points_check" in caplog.text


def test_points_too_many_to_be_added_up_keep_no_others_from_expiring(session, old_system, do):
    POINTS.fill(session, 3)
    do("UPDATE expiry_point_lots SET remaining = 9223372036854775807, user_id = 'user-0' WHERE id < 3")

    counts = POINTS.sweep(session)

    assert (counts["expired"] + counts["broken"], counts["left"]) == (3, 0)
    assert session.scalar(text("SELECT remaining FROM expiry_point_lots WHERE id = 3")) == 0


def test_a_task_nobody_owns_is_reported_and_the_others_are_cancelled(session, old_system, do, caplog):
    ids = TASKS.fill(session, 5)
    do("UPDATE expiry_tasks SET owner_id = NULL WHERE id = :id", id=ids[2])

    counts = TASKS.sweep(session, batch=2)

    assert counts == {"cancelled": 4, "left": 0, "broken": 1}
    assert ("expiry_tasks", str(ids[2])) in refused(caplog)
    assert [event.reason for event in emitted(caplog, "sweep.rows_refused")] == ["NotNullViolation owner_id"]


@every_sweep
def test_a_row_that_the_database_refuses_loses_no_other_of_its_batch_and_is_named_once(
    subject: Subject, session: Session, refuse, caplog
):
    ids = subject.fill(session, 20)
    refuse(subject, f"old.id IN ({ids[3]}, {ids[11]})")

    counts = subject.sweep(session, batch=8)
    again = subject.sweep(session, batch=8)

    assert (counts[subject.word], counts["broken"]) == (18, 2)
    assert (again[subject.word], again["broken"]) == (0, 2)
    assert subject.count(session) == 18
    assert named(caplog) == [str(ids[3]), str(ids[11])] * 2  # once in each run
    assert (
        emitted(caplog, "sweep.rows_refused")[0].reason == "RaiseException PL/pgSQL function refuse() line 1 at RAISE"
    )
    assert "not this one" not in caplog.text  # the message of a trigger may contain personal data


def refused(caplog) -> list[tuple[str, str]]:
    """Return the tables and ids that the log names."""
    return [(event.table, event.ids) for event in emitted(caplog, "sweep.rows_refused")]


def named(caplog) -> list[str]:
    """Return the refused rows in the order in which the log names them."""
    return [row_id for _, ids in refused(caplog) for row_id in ids.split(", ")]


def test_a_refused_row_told_nobody(session, refuse, published):
    ids = TASKS.fill(session, 4)
    refuse(TASKS, f"old.id = {ids[1]}")

    TASKS.sweep(session)

    assert [message["task_id"] for _, message in published] == [ids[0], ids[2], ids[3]]


@every_sweep
@pytest.mark.slow
def test_any_number_of_refused_rows_keeps_no_other_from_ending(subject: Subject, session: Session, refuse, caplog):
    ids = subject.fill(session, 400)
    refuse(subject, "mod(old.id, 5) = 0 OR old.id < 80")
    refused = [row_id for row_id in ids if row_id % 5 == 0 or row_id < 80]

    counts = subject.sweep(session, batch=250)

    assert (counts[subject.word], counts["left"], counts["broken"]) == (400 - len(refused), 0, len(refused))
    assert subject.count(session) == 400 - len(refused)
    assert named(caplog) == [str(row_id) for row_id in refused]


def test_a_run_in_which_every_row_is_refused_says_so_and_succeeds(session, refuse, caplog):
    COUPONS.fill(session, 20)
    refuse(COUPONS, "true")

    assert COUPONS.sweep(session, batch=4) == {"expired": 0, "left": 0, "broken": 20}
    assert len(named(caplog)) == 20


def test_every_broken_row_is_named_and_none_is_kept_in_memory(session, old_system, do, caplog, monkeypatch):
    monkeypatch.setattr(sweeps, "UNFIT_AT_ONCE", 7)
    ids = COUPONS.fill(session, 30)
    do("UPDATE expiry_coupons SET ends_at = NULL")

    assert COUPONS.sweep(session) == {"expired": 0, "left": 0, "broken": 30}
    assert named(caplog) == [str(row_id) for row_id in ids]


def test_a_broken_row_that_is_mended_ends_in_the_next_run(session, old_system, do):
    (coupon_id,) = COUPONS.fill(session, 1)
    do("UPDATE expiry_coupons SET ends_at = NULL")
    assert COUPONS.sweep(session)["broken"] == 1

    do("UPDATE expiry_coupons SET ends_at = :at WHERE id = :id", at=BEFORE, id=coupon_id)

    assert COUPONS.sweep(session, NOON) == {"expired": 1, "left": 0, "broken": 0}
