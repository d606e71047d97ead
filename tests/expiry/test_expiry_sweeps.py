"""The common rules of the four sweeps: the boundary, batches, repeated and parallel runs, locked and failing rows."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from expiry_world import A_MOMENT, NOON, POINTS, SUBJECTS, TASKS, Subject
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from plugins.expiry import sweeps
from tests.support.racing import race

pytestmark = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.job.name)


def test_a_moment_before_its_end_a_row_stays(subject: Subject, session: Session):
    subject.fill(session, 1)

    assert subject.sweep(session, NOON - A_MOMENT)[subject.word] == 0
    assert subject.count(session) == 0


def test_at_its_very_end_a_row_ends(subject: Subject, session: Session):
    subject.fill(session, 1)

    assert subject.sweep(session, NOON)[subject.word] == 1
    assert subject.count(session) == 1


def test_an_end_is_an_instant_whatever_the_time_zone_it_was_written_in(subject: Subject, session: Session):
    session.execute(text("SET TIME ZONE 'Asia/Tokyo'"))
    subject.fill(session, 3)
    session.execute(text("SET TIME ZONE 'America/New_York'"))

    assert subject.sweep(session, NOON - timedelta(seconds=1), batch=1)[subject.word] == 2
    assert subject.count(session) == 2


def test_a_row_that_ends_in_the_year_9999_stays_and_is_in_nobodys_way(subject: Subject, session: Session):
    never = NOON.replace(year=9999, month=12, day=31, hour=23, minute=59, second=59)
    subject.make(session, 0, never)
    subject.make(session, 1, NOON)
    session.commit()

    assert subject.sweep(session)[subject.word] == 1
    assert subject.sweep(session, never - A_MOMENT)[subject.word] == 0
    assert subject.sweep(session, never)[subject.word] == 1


def test_the_second_run_finds_nothing_to_do(subject: Subject, session: Session):
    subject.fill(session, 5)
    first, before = subject.sweep(session), rows(session, subject)

    second = subject.sweep(session, NOON + timedelta(days=1))

    assert (first[subject.word], second[subject.word]) == (5, 0)
    assert rows(session, subject) == before


def test_nothing_due_is_nothing_done_and_no_checkpoint(subject: Subject, session: Session):
    checkpoints: list[object] = []

    counts = subject.expire(session, NOON, checkpoint=checkpoints.append)

    assert set(counts.values()) == {0}
    assert checkpoints == []


def test_each_batch_is_a_checkpoint_that_tells_of_the_progress(subject: Subject, session: Session, engine_of_others):
    subject.fill(session, 5)
    seen: list[tuple[int, int]] = []

    def checkpoint(progress: dict[str, int]) -> None:
        session.commit()
        with Session(engine_of_others) as other:
            seen.append((progress[subject.word], subject.count(other)))

    subject.expire(session, NOON, checkpoint=checkpoint, batch=2)

    assert seen == [(2, 2), (4, 4), (5, 5)]


def test_a_slice_ends_and_the_next_goes_on_from_there(subject: Subject, session: Session, monkeypatch):
    monkeypatch.setattr(sweeps, "SLICE", 3)
    subject.fill(session, 4)
    subject.make(session, 4, NOON)  # this row ends at the same time as the row before it, and only the id differs
    subject.make(session, 5, NOON)
    subject.make(session, 6, NOON + A_MOMENT)
    session.commit()
    statements: list[list[str]] = []
    read = sweeps.read_slice
    monkeypatch.setattr(sweeps, "read_slice", lambda *args: noted(read(*args), statements))

    assert subject.sweep(session, batch=2)[subject.word] == 6
    assert statements == [["1,2", "3"], ["4,5", "6"]]


def noted(found, into):
    if found is not None:
        into.append(found[0])
    return found


def test_four_sweeps_at_once_end_each_row_once(subject: Subject, session: Session, database: Engine, check_invariants):
    subject.fill(session, 120)

    def one() -> dict[str, int]:
        with Session(database) as own:
            return subject.sweep(own, batch=7)

    done = race(one, one, one, one)

    ended = sum(counts[subject.word] for counts in done)
    assert ended + subject.sweep(session)[subject.word] == 120
    assert subject.count(session) == 120
    assert effects(session, subject) in {120, None}
    check_invariants()


def test_a_row_somebody_holds_is_left_and_counted_and_ends_in_the_next_run(
    subject: Subject, session: Session, engine_of_others: Engine, monkeypatch
):
    monkeypatch.setattr(sweeps, "SLICE", 1)  # the sweep continues after rows that it could not end
    ids = subject.fill(session, 3)
    hold = f"SELECT 1 FROM {subject.table} WHERE id = :id FOR UPDATE"
    with engine_of_others.begin() as holder:
        holder.execute(text(hold), {"id": ids[1]})

        counts = subject.sweep(session)

        assert (counts[subject.word], counts["left"]) == (2, 1)
    assert subject.sweep(session)[subject.word] == 1


@pytest.mark.parametrize("change", ["{at} = :later", "{closed}"], ids=["prolonged", "closed"])
def test_a_row_that_changes_after_it_was_found_due_is_left_alone(subject: Subject, session: Session, do, change: str):
    ids = subject.fill(session, 4)
    change = change.format(at=subject.at, closed=subject.closed)

    def checkpoint(progress: dict[str, int]) -> None:
        session.commit()
        if progress[subject.word] == 2:
            do(f"UPDATE {subject.table} SET {change} WHERE id = :id", id=ids[2], later=NOON + A_MOMENT)

    counts = subject.expire(session, NOON, checkpoint=checkpoint, batch=2)

    assert (counts[subject.word], counts["left"]) == (3, 1)
    assert effects(session, subject) in {3, None}


def test_an_error_loses_its_own_batch_and_no_other(subject: Subject, session: Session, check_invariants):
    subject.fill(session, 6)

    def checkpoint(progress: dict[str, int]) -> None:
        if progress[subject.word] > 4:
            raise ConnectionError
        session.commit()

    with pytest.raises(ConnectionError):
        subject.expire(session, NOON, checkpoint=checkpoint, batch=2)
    session.rollback()
    assert subject.count(session) == 4
    check_invariants()

    assert subject.sweep(session)[subject.word] == 2
    assert subject.count(session) == 6
    check_invariants()


def test_a_connection_that_ends_in_the_middle_loses_nothing(
    subject: Subject, database: Engine, session: Session, do: Callable[..., int], check_invariants
):
    subject.fill(session, 6)
    with Session(database) as doomed:
        pid = doomed.scalar(text("SELECT pg_backend_pid()"))

        def checkpoint(progress: dict[str, int]) -> None:
            if progress[subject.word] > 2:
                do("SELECT pg_terminate_backend(:pid)", pid=pid)
            doomed.commit()

        with pytest.raises(OperationalError):
            subject.expire(doomed, NOON, checkpoint=checkpoint, batch=2)
        doomed.invalidate()
    assert subject.count(session) == 2
    session.rollback()
    check_invariants()

    assert subject.sweep(session)[subject.word] == 4
    assert subject.count(session) == 6
    assert effects(session, subject) in {6, None}
    check_invariants()


def test_without_the_right_to_write_it_fails_at_once_and_says_so(subject: Subject, session: Session):
    subject.fill(session, 3)
    session.execute(text("CREATE ROLE reader"))
    session.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))
    session.execute(text("SET LOCAL ROLE reader"))

    with pytest.raises(ProgrammingError, match="permission denied for table expiry_"):
        subject.expire(session, NOON, checkpoint=lambda _: None)
    session.rollback()
    assert subject.count(session) == 0


def rows(session: Session, subject: Subject) -> list[tuple[object, ...]]:
    """Return all rows that a sweep may write, except the balances."""
    tables = [subject.table, "expiry_notifications", "expiry_point_entries"]
    return [tuple(row) for table in tables for row in session.execute(text(f"SELECT * FROM {table} ORDER BY id"))]


def effects(session: Session, subject: Subject) -> int | None:
    """Return how many notifications or ledger entries the ended rows have."""
    if subject is TASKS:
        return session.scalar(text("SELECT count(*) FROM expiry_notifications"))
    if subject is POINTS:
        return session.scalar(text("SELECT count(*) FROM expiry_point_entries WHERE kind = 'expired'"))
    return None


@pytest.fixture
def engine_of_others(database: Engine) -> Engine:
    return database
