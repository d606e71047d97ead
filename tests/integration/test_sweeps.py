"""Sweeps on a plugin's table: rows that violate a constraint do not stop the other rows; other errors end the sweep."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine, delete, literal, select, text, update
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from core import NaiveTime, Tables, in_batches, isolate, publish, sweep
from core.ledger import outbox
from tests.support.emitted import emitted

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)


class Base(Tables, DeclarativeBase):
    """The base of these tests' tables."""


class Parcel(Base):
    """A row of the swept table."""

    __tablename__ = "test_parcels"

    id: Mapped[int] = mapped_column(primary_key=True)
    weight: Mapped[int]
    sent_at: Mapped[datetime | None]
    waited: Mapped[timedelta | None]


SETUP = """
    CREATE TABLE test_stamps (parcel_id bigint PRIMARY KEY, label text);
    CREATE INDEX ON test_stamps (label);
    CREATE TABLE test_boxes (parcel_id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED);
"""


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with database.begin() as connection:
        Base.metadata.create_all(connection)
        connection.exec_driver_sql(SETUP)
    with Session(database) as session:
        session.add_all(Parcel(id=number, weight=1) for number in range(1, 21))
        session.commit()
        yield session


def ids(session: Session, batch: int = 7) -> Iterator[Sequence[int]]:
    def find(last: int | None) -> Sequence[int]:
        parcels = select(Parcel.id).where(Parcel.id > (last or 0)).order_by(Parcel.id).limit(batch)
        return session.scalars(parcels.with_for_update()).all()

    return in_batches(find)


def executing(session: Session, statement: str):
    """Return an ``act`` that executes ``statement`` for all its rows at once."""

    def act(rows: Sequence[int]) -> dict[str, int]:
        session.execute(text(statement), {"ids": list(rows)})
        return {"done": len(rows)}

    return act


def swept(session: Session, act, **options) -> dict[str, int]:
    checkpoint = options.pop("checkpoint", lambda _: session.commit())
    return sweep(session, ids(session), act, table="parcels", counts={"done": 0}, checkpoint=checkpoint, **options)


RAISE = "DO $$ BEGIN IF {} THEN RAISE 'no'; END IF; END $$"
FAULTS = {
    "a constraint": "INSERT INTO test_stamps SELECT CASE WHEN n <> 9 THEN n END FROM unnest(:ids) AS n",
    "a constraint that waits for the commit": "INSERT INTO test_boxes SELECT greatest(n, 9) FROM unnest(:ids) AS n"
    " WHERE n > 8 OR n = 1",
    "division by zero": "SELECT sum(1 / (n - 9)) FROM unnest(:ids) AS n",
    "more than a bigint": "SELECT sum(n + CASE WHEN n = 9 THEN 9223372036854775807 ELSE 0 END) FROM unnest(:ids) AS n",
    "two rows where one should be": "SELECT (SELECT n FROM generate_series(1, CASE n WHEN 9 THEN 2 ELSE 1 END))"
    " FROM unnest(:ids) AS n",
    "a value too large to be indexed": "INSERT INTO test_stamps SELECT n, CASE n WHEN 9 THEN"
    " (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 999) AS i) END FROM unnest(:ids) AS n",
}


@pytest.mark.parametrize("statement", FAULTS.values(), ids=FAULTS)
def test_a_row_that_postgresql_refuses_is_named_and_all_others_are_done(session, statement, caplog):
    assert swept(session, executing(session, statement)) == {"done": 19, "broken": 1}

    [refused] = emitted(caplog, "sweep.rows_refused")
    assert (refused.table, refused.rows) == ("parcels", 1)
    assert refused.ids in {"9", "1"}


@pytest.mark.parametrize(
    "change",
    ["sent_at = '20000-01-01'", "sent_at = '4000-01-01 BC'", "waited = '9000000 years'"],
)
def test_a_value_that_python_cannot_hold_is_the_fault_of_its_row(session, change):
    session.execute(text(f"UPDATE test_parcels SET {change} WHERE id = 9"))
    session.commit()

    def act(rows):
        return {"done": len(session.execute(select(Parcel.sent_at, Parcel.waited).where(Parcel.id.in_(rows))).all())}

    assert swept(session, act) == {"done": 19, "broken": 1}


def test_a_value_that_python_refuses_is_told_by_its_place_and_never_repeated(session, caplog):
    def act(rows):
        if 9 in rows:
            raise ValueError("somebody's secret")
        return {"done": len(rows)}

    swept(session, act)

    [refused] = emitted(caplog, "sweep.rows_refused")
    assert refused.ids == "9"
    assert re.fullmatch(r"ValueError at test_sweeps\.py:\d+", refused.reason)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT nothing", ProgrammingError),
        ("SET LOCAL lock_timeout = '1ms'; LOCK TABLE test_stamps", OperationalError),
        ("SELECT pg_terminate_backend(pg_backend_pid())", OperationalError),
        ("COMMIT", (DBAPIError, InternalError)),
    ],
)
def test_what_is_no_fault_of_a_row_ends_the_run(session, database, statement, error):
    with database.connect() as other:
        other.exec_driver_sql("LOCK TABLE test_stamps")
        with pytest.raises(error):
            swept(session, executing(session, statement))


def test_a_time_without_a_zone_is_the_callers_fault_and_ends_the_run(session):
    def act(rows):
        session.execute(update(Parcel).where(Parcel.id.in_(rows)).values(sent_at=NAIVE))
        return {}

    with pytest.raises(NaiveTime, match="with a time zone"):
        swept(session, act)


@pytest.mark.parametrize("refused", [range(1, 21), range(1, 20), [1, 20], [7, 8], range(2, 21, 2), []], ids=str)
def test_whichever_rows_are_refused_all_others_are_done(session, refused, caplog):
    def act(rows):
        if set(rows) & set(refused):
            session.execute(text(RAISE.format("true")))
        session.execute(delete(Parcel).where(Parcel.id.in_(rows)))
        return {"done": len(rows)}

    counts = swept(session, act, refused="failed")

    assert counts == {"done": 20 - len(refused), "failed": len(refused)}
    assert session.scalars(select(Parcel.id).order_by(Parcel.id)).all() == list(refused)
    named = [each for event in emitted(caplog, "sweep.rows_refused") for each in event.ids.split(", ")]
    assert sorted(map(int, named)) == list(refused)


def test_each_batch_has_a_checkpoint_with_the_counts_so_far(session):
    seen = []

    swept(session, lambda rows: {"done": len(rows)}, checkpoint=lambda counts: seen.append(dict(counts)))

    assert seen == [{"done": done, "broken": 0} for done in (7, 14, 20)]


def test_a_refused_row_publishes_nothing(session):
    published: list[dict[str, int]] = []

    class Channel:
        def publish(self, _channel, message):
            published.append(message)

    outbox.attach(Channel())
    try:
        swept(
            session, lambda rows: [publish(session, "parcels", {"id": one}) for one in rows] and _stamp(session, rows)
        )
    finally:
        outbox.attach(None)

    assert [message["id"] for message in published] == [number for number in range(1, 21) if number != 9]


def _stamp(session, rows):
    return executing(session, FAULTS["a constraint"])(rows)


def test_rows_may_be_tuples_that_begin_with_their_id(session, caplog):
    rows = session.execute(select(Parcel.id, Parcel.weight).order_by(Parcel.id)).all()

    _, refused = isolate(session, rows, lambda some: 1 // all(row.id != 9 for row in some) and {}, table="parcels")

    assert refused == [(9, 1)]
    assert [event.ids for event in emitted(caplog, "sweep.rows_refused")] == ["9"]


class TestTimes:
    @pytest.mark.parametrize("time", [NAIVE, "2026-01-05", NOON.date()], ids=repr)
    def test_one_without_a_zone_is_neither_stored_nor_compared(self, session, time):
        with pytest.raises(NaiveTime, match="expected a datetime with a time zone"):
            session.execute(update(Parcel).values(sent_at=time))
        with pytest.raises(NaiveTime):
            session.execute(select(Parcel).where(Parcel.sent_at < time))

    def test_one_in_any_zone_comes_back_in_utc(self, session):
        session.execute(text("SET TIME ZONE 'Asia/Kolkata'"))
        session.execute(update(Parcel).values(sent_at=NOON.astimezone(timezone(timedelta(hours=-7)))))

        (found,) = set(session.scalars(select(Parcel.sent_at)))
        assert (found, found.tzinfo) == (NOON, UTC)

    def test_spans_are_added_and_subtracted(self, session):
        session.execute(update(Parcel).values(sent_at=NOON))
        span = select(Parcel.sent_at - literal(NOON, Parcel.sent_at.type), Parcel.sent_at + timedelta(days=1)).limit(1)

        assert session.execute(span).one() == (timedelta(0), NOON + timedelta(days=1))
