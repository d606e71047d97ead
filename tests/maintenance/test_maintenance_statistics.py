"""The sweep computes the same statistics as a full recomputation, and computes only those of changed users."""

import random
import threading
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from maintenance_world import NOON
from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from plugins.maintenance import statistics
from plugins.maintenance.models import ChangedUser, Review, Task, UserStatistics
from plugins.maintenance.statistics import recompute_all, update_statistics
from tests.support.emitted import emitted
from tests.support.eventually import eventually
from tests.support.racing import race

USERS = ["ann", "bob", "cat", "dan", "o'neil %s", "é"]
COMPLETED = {"state": "completed", "completed_at": NOON}


def sweep(session, batch=5000, now=NOON):
    return update_statistics(session, now, checkpoint=lambda _: session.commit(), batch=batch)


def figures(session):
    """Return the statistics of all users, without users who have only zeros."""
    session.rollback()
    rows = session.execute(select(UserStatistics.user_id, *statistics.FIGURES)).all()
    return {row.user_id: tuple(row[1:]) for row in rows if any(row[1:])}


def recomputed(session):
    """Return the result of a full recomputation, which is rolled back."""
    session.rollback()
    session.execute(delete(UserStatistics))
    recompute_all(session, NOON)
    rows = session.execute(select(UserStatistics.user_id, *statistics.FIGURES)).all()
    session.rollback()
    return {row.user_id: tuple(row[1:]) for row in rows if any(row[1:])}


def in_python(session):
    """Compute the statistics a second time, in Python."""
    session.rollback()
    tasks, reviews = session.execute(select(Task)).scalars().all(), session.execute(select(Review)).scalars().all()
    found = {}
    for user in {task.poster_id for task in tasks} | {task.taker_id for task in tasks} | {r.user_id for r in reviews}:
        posted = sum(task.poster_id == user for task in tasks)
        taken = [task for task in tasks if task.taker_id == user]
        completed = sum(task.state == "completed" for task in taken)
        ratings = [Decimal(review.rating) for review in reviews if review.user_id == user]
        rate = (Decimal(completed) / len(taken)).quantize(Decimal("0.0001"), "ROUND_HALF_UP") if taken else None
        rating = (sum(ratings) / len(ratings)).quantize(Decimal("0.01"), "ROUND_HALF_UP") if ratings else None
        if user is not None:
            found[user] = (posted, len(taken), completed, rate, rating)
    return found


def test_the_figures_of_one_user(world):
    done = world.task(taker_id="zoe", state="completed")
    world.task("taken", taker_id="zoe"), world.task("cancelled", taker_id="zoe"), world.task(poster_id="zoe")
    for rating in (5, 4, 4):
        world.review(done, "zoe", rating)

    assert sweep(world.session) == {"users": 2, "failed": 0}

    zoe = world.get(UserStatistics, "zoe")
    assert (zoe.tasks_posted, zoe.tasks_taken, zoe.tasks_completed) == (1, 3, 1)
    assert (zoe.completion_rate, zoe.average_rating) == (Decimal("0.3333"), Decimal("4.33"))
    ann = world.get(UserStatistics, "ann")
    assert (ann.tasks_posted, ann.tasks_taken, ann.completion_rate, ann.average_rating) == (3, 0, None, None)


def test_nobody_is_looked_at_for_whom_nothing_changed(world):
    task = world.task(taker_id="zoe", state="taken")
    world.task(poster_id="bob")
    sweep(world.session)

    assert sweep(world.session) == {"users": 0, "failed": 0}
    world.session.execute(update(Task).where(Task.id == task).values(**COMPLETED))
    world.session.commit()

    assert sweep(world.session, now=NOON + timedelta(hours=1)) == {"users": 2, "failed": 0}
    assert world.get(UserStatistics, "zoe").updated_at == NOON + timedelta(hours=1)
    assert world.get(UserStatistics, "bob").updated_at == NOON, "not touched"
    assert world.get(UserStatistics, "ann").updated_at == NOON, "looked at, and no figure of hers differs"


def test_changes_that_concern_no_figure_leave_no_mark(world):
    task = world.task(taker_id="zoe", state="taken")
    sweep(world.session)
    world.session.execute(update(Task).where(Task.id == task).values(category="x", deadline_at=NOON))
    world.session.execute(update(Task).where(Task.id == task).values(state="taken"))
    world.session.commit()

    assert world.count(ChangedUser) == 0


def test_a_change_that_is_rolled_back_leaves_no_mark(world):
    world.session.execute(insert(Task).values(poster_id="ann"))
    world.session.rollback()

    assert world.count(ChangedUser) == 0


@pytest.mark.parametrize("table", ["maintenance_tasks CASCADE", "maintenance_reviews"])
def test_truncate_concerns_everyone(world, table):
    world.review(world.task(taker_id="zoe", state="taken"), "zoe", 5)
    sweep(world.session)
    world.session.execute(text(f"TRUNCATE {table}"))
    world.session.commit()

    assert sweep(world.session)["users"] == 2
    assert figures(world.session) == recomputed(world.session)


def test_a_task_that_changes_hands_concerns_both(world):
    task = world.task("taken", taker_id="zoe")
    sweep(world.session)
    world.session.execute(update(Task).where(Task.id == task).values(taker_id="bob", poster_id="cat"))
    world.session.commit()

    assert sweep(world.session)["users"] == 4
    assert figures(world.session) == {"cat": (1, 0, 0, None, None), "bob": (0, 1, 0, Decimal(0), None)}


@pytest.fixture(scope="module")
def history_engine(template):
    from core import database
    from core.testing import create_database, drop_database

    made = database.connect(create_database(template, "histories", template=True))
    yield made
    database.dispose(made)
    drop_database(template, "histories")


ACTIONS = st.one_of(
    st.tuples(st.just("post"), st.sampled_from(USERS), st.sampled_from([None, *USERS]), st.booleans()),
    st.tuples(st.just("take"), st.integers(0, 9), st.sampled_from(USERS)),
    st.tuples(st.just("finish"), st.integers(0, 9), st.sampled_from(["completed", "cancelled", "open"])),
    st.tuples(st.just("review"), st.integers(0, 9), st.sampled_from(USERS), st.integers(1, 5)),
    st.tuples(st.just("rerate"), st.integers(0, 9), st.sampled_from(USERS), st.integers(1, 5)),
    st.tuples(st.just("delete task"), st.integers(0, 9)),
    st.tuples(st.just("delete review"), st.integers(0, 9)),
    st.tuples(st.just("delete all of"), st.sampled_from(USERS)),
    st.tuples(st.just("renumber"), st.integers(0, 9)),
    st.tuples(st.just("roll back"), st.sampled_from(USERS)),
    st.tuples(st.just("sweep"), st.integers(1, 4)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, max_size=40))
def test_after_any_history_the_sweep_says_what_a_full_recomputation_says(history_engine, actions):
    with Session(history_engine) as session:
        session.execute(text("TRUNCATE maintenance_tasks CASCADE"))
        session.execute(text("TRUNCATE maintenance_user_statistics, maintenance_changed_users"))
        session.commit()
        for action in actions:
            happen(session, *action)

        sweep(session)

        assert session.scalar(select(ChangedUser.id).limit(1)) is None
        assert figures(session) == recomputed(session) == in_python(session)


def happen(session, what, *args):
    task = nth(session, Task, args[0]) if args and isinstance(args[0], int) else None
    if what == "post":
        poster, taker, again = args
        rows = [{"poster_id": poster, "taker_id": taker}] * (2 if again else 1)
        session.execute(insert(Task), rows)
    elif what == "take":
        session.execute(update(Task).where(Task.id == task).values(taker_id=args[1]))
    elif what == "finish":
        times = {"completed_at": None, "cancelled_at": None}
        if args[1] != "open":
            times[f"{args[1]}_at"] = NOON
        session.execute(update(Task).where(Task.id == task).values(state=args[1], **times))
    elif what == "review" and task is not None:
        session.execute(insert(Review).values(task_id=task, user_id=args[1], rating=args[2]))
    elif what == "rerate":
        changes = {"user_id": args[1], "rating": args[2]}
        session.execute(update(Review).where(Review.id == nth(session, Review, args[0])).values(**changes))
    elif what == "delete task":
        session.execute(delete(Task).where(Task.id == task))
    elif what == "delete review":
        session.execute(delete(Review).where(Review.id == nth(session, Review, args[0])))
    elif what == "delete all of":
        session.execute(delete(Task).where((Task.poster_id == args[0]) | (Task.taker_id == args[0])))
    elif (
        what == "renumber" and task is not None and session.scalar(select(Review).where(Review.task_id == task)) is None
    ):
        session.execute(text("UPDATE maintenance_tasks SET id = id + 1000000 WHERE id = :id"), {"id": task})
    elif what == "roll back":
        session.execute(delete(Task).where(Task.poster_id == args[0]))
        session.rollback()
    elif what == "sweep":
        sweep(session, batch=args[0])
    session.commit()


def nth(session, model, number):
    return session.scalar(select(model.id).order_by(model.id).offset(number).limit(1))


@pytest.mark.slow
def test_no_change_is_lost_while_writers_and_sweeps_run_side_by_side(engine, world):
    """Six writers change the same few users while three sweeps run. After one more sweep, all statistics are right."""
    stop = threading.Event()
    for number in range(30):
        world.task(poster_id=USERS[number % 6], taker_id=USERS[number % 5], state="taken")

    def writer(seed):
        def run():
            dice = random.Random(seed)
            with Session(engine) as own:
                for _ in range(120):
                    for _ in range(dice.randrange(1, 4)):
                        write(own, dice)
                    own.rollback() if dice.random() < 0.2 else own.commit()

        return run

    def sweeper():
        with Session(engine) as own:
            while not stop.is_set():
                sweep(own, batch=3)

    sweepers = [threading.Thread(target=sweeper) for _ in range(3)]
    for thread in sweepers:
        thread.start()
    try:
        race(*(writer(seed) for seed in range(6)))
    finally:
        stop.set()
        for thread in sweepers:
            thread.join(30)

    sweep(world.session)
    assert world.count(ChangedUser) == 0
    assert figures(world.session) == recomputed(world.session) == in_python(world.session)


def write(session, dice):
    """Make one change. Tasks are locked in no fixed order, so a writer takes one task, and skips locked tasks."""
    free = select(Task.id).order_by(Task.id).offset(dice.randrange(25)).limit(1).with_for_update(skip_locked=True)
    task = session.scalar(free)
    what = dice.randrange(5)
    if what == 0 or task is None:
        session.execute(insert(Task).values(poster_id=dice.choice(USERS), taker_id=dice.choice(USERS), state="taken"))
    elif what == 1:
        session.execute(update(Task).where(Task.id == task).values(**COMPLETED))
    elif what == 2:
        session.execute(update(Task).where(Task.id == task).values(state="taken", completed_at=None))
    elif what == 3:
        session.execute(insert(Review).values(task_id=task, user_id=dice.choice(USERS), rating=dice.randrange(1, 6)))
    else:
        session.execute(delete(Task).where(Task.id == task))


def test_a_change_committed_after_its_batch_was_computed_is_for_the_next_sweep(world, engine):
    world.task(poster_id="ann")
    with Session(engine) as late:
        late.execute(insert(Task).values(poster_id="ann"))
        assert sweep(world.session)["users"] == 1
        late.commit()

    assert world.get(UserStatistics, "ann").tasks_posted == 1
    assert sweep(world.session)["users"] == 1
    assert world.get(UserStatistics, "ann").tasks_posted == 2


def test_the_slower_of_two_sweeps_does_not_put_old_figures_over_new_ones(world, engine):
    """The first sweep has the lock of ann's row and waits. The second sweep, with a later mark of ann, must wait for
    it.
    """
    world.task(poster_id="ann")
    with Session(engine) as first:
        statistics._take_marks(first, 10**9, 1)
        statistics.recompute(first, ["ann"], NOON)
        world.task(poster_id="ann")
        with Session(engine) as second:
            second.execute(text("SET LOCAL lock_timeout = '200ms'"))
            with pytest.raises(DBAPIError, match="lock timeout"):
                sweep(second)
            second.rollback()
        first.commit()

    sweep(world.session)
    assert world.get(UserStatistics, "ann").tasks_posted == 2


def test_four_sweeps_at_once(world, engine):
    world.session.execute(
        insert(Task), [{"poster_id": f"user-{n % 97}", "taker_id": f"user-{n % 31}"} for n in range(900)]
    )
    world.session.commit()

    def one():
        with Session(engine) as own:
            return sweep(own, batch=13)

    race(one, one, one, one)

    assert world.count(ChangedUser) == 0
    assert figures(world.session) == recomputed(world.session)


def test_a_crash_between_batches_loses_nothing(world):
    for number in range(10):
        world.task(poster_id=f"user-{number}")

    def crash_on_the_second(progress):
        if progress["users"] > 4:
            raise ConnectionError
        world.session.commit()

    with pytest.raises(ConnectionError):
        update_statistics(world.session, NOON, checkpoint=crash_on_the_second, batch=4)

    assert len(figures(world.session)) == 4
    sweep(world.session)
    assert figures(world.session) == recomputed(world.session)


def test_a_user_whose_figures_are_refused_does_not_keep_the_others(world, caplog):
    for user in USERS:
        world.task(poster_id=user)
    world.session.execute(
        text("ALTER TABLE maintenance_user_statistics ADD CONSTRAINT no_bob CHECK (user_id <> 'bob')")
    )
    world.session.commit()

    try:
        assert sweep(world.session) == {"users": 5, "failed": 1}
        assert set(figures(world.session)) == set(USERS) - {"bob"}
        [refused] = emitted(caplog, "sweep.rows_refused")
        assert refused.reason.startswith("CheckViolation")
    finally:
        world.session.rollback()
        world.session.execute(text("ALTER TABLE maintenance_user_statistics DROP CONSTRAINT no_bob"))
        world.session.commit()


def test_a_batch_is_a_handful_of_statements_however_many_users_are_in_it(world, engine):
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    counts = []
    for users in (3, 300):
        world.session.execute(insert(Task), [{"poster_id": f"user-{number}"} for number in range(users)])
        world.session.commit()
        statements.clear()
        sweep(world.session)
        counts.append(len(statements))

    assert counts[0] == counts[1] < 15


def test_a_sweep_ends_although_changes_go_on(world, engine):
    world.task(poster_id="ann")

    def and_another_change(_progress):
        world.session.commit()
        with Session(engine) as other:
            other.execute(insert(Task).values(poster_id="ann"))
            other.commit()

    assert update_statistics(world.session, NOON, checkpoint=and_another_change, batch=1)["users"] == 1
    assert world.count(ChangedUser) == 1


def test_a_sweep_that_is_held_up_does_not_write_what_it_saw_before_it_waited(world, engine):
    """The sweep waits for the statistics of u00. Meanwhile all other users change, and another sweep writes their
    statistics.
    """
    users = [f"u{number:02}" for number in range(20)]
    for _ in range(2):
        for user in users:
            world.task(poster_id=user)
        if not world.count(UserStatistics):
            sweep(world.session)

    def held_up():
        with Session(engine) as own:
            sweep(own)

    with Session(engine) as holder:
        holder.execute(text("SELECT user_id FROM maintenance_user_statistics WHERE user_id = 'u00' FOR UPDATE"))
        waiting = threading.Thread(target=held_up)
        waiting.start()
        eventually(lambda: world.session.scalar(BLOCKED), within=10)
        world.session.rollback()
        for user in users[1:]:
            world.task(poster_id=user)
        sweep(world.session)
        holder.rollback()
        waiting.join(30)

    assert figures(world.session) == recomputed(world.session)
    assert world.get(UserStatistics, "u19").tasks_posted == 3


BLOCKED = text("SELECT true FROM pg_locks WHERE NOT granted LIMIT 1")


def test_a_user_whose_figures_are_refused_keeps_one_mark_and_is_named_once_however_many_there_were(session, caplog):
    session.execute(text("ALTER TABLE maintenance_user_statistics ADD CONSTRAINT no_bob CHECK (user_id <> 'bob')"))
    session.execute(insert(ChangedUser), [{"user_id": name} for name in ["ann", "bob"] * 5])
    session.commit()

    try:
        assert sweep(session, batch=3) == {"users": 2, "failed": 1}
        assert [refused.ids for refused in emitted(caplog, "sweep.rows_refused")] == ["bob"]
        assert session.scalars(select(ChangedUser.user_id)).all() == ["bob"]
        assert sweep(session) == {"users": 0, "failed": 1}
    finally:
        session.rollback()
        session.execute(text("ALTER TABLE maintenance_user_statistics DROP CONSTRAINT no_bob"))
        session.commit()

    assert sweep(session) == {"users": 1, "failed": 0}
    assert session.scalars(select(ChangedUser.user_id)).all() == []
