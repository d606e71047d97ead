"""Experts' response times and bios."""

from datetime import timedelta
from decimal import Decimal

import pytest
from maintenance_world import NOON
from sqlalchemy import text
from sqlalchemy.orm import Session

from plugins.maintenance.bios import Record, summary, update_bios
from plugins.maintenance.models import TaskExpert
from plugins.maintenance.response_times import update_response_times
from tests.support.racing import race

HOUR = timedelta(hours=1)


def times(world, batch=500):
    return update_response_times(world.session, NOON, checkpoint=world.checkpoint, batch=batch)


def bios(world, batch=500):
    return update_bios(world.session, NOON, checkpoint=world.checkpoint, batch=batch)


def response_time(world, expert="zoe"):
    return world.get(TaskExpert, expert).average_response_time


def test_a_featured_expert_s_average_over_what_was_answered(world):
    world.expert()
    world.inquiry("zoe", NOON, NOON + HOUR), world.inquiry("zoe", NOON, NOON + 2 * HOUR), world.inquiry("zoe", NOON)

    assert times(world) == {"experts": 1, "failed": 0}
    assert response_time(world) == 1.5 * HOUR
    assert times(world) == {"experts": 1, "failed": 0}
    assert response_time(world) == 1.5 * HOUR


def test_an_expert_who_is_not_featured_keeps_what_they_had(world):
    world.expert(is_featured=False, average_response_time=9 * HOUR)
    world.inquiry("zoe", NOON, NOON + HOUR)

    assert times(world)["experts"] == 0
    assert response_time(world) == 9 * HOUR


def test_an_expert_who_has_answered_nothing_has_none(world):
    world.expert(average_response_time=HOUR)
    world.inquiry("zoe", NOON)

    times(world)
    assert response_time(world) is None


def test_answers_that_cannot_be_count_for_nothing_and_the_others_do(world):
    world.expert(), world.expert("yan")
    for asked, answered in (
        ("2026-01-05 13:00+00", "2026-01-05 12:00+00"),
        ("-infinity", "2026-01-05 12:00+00"),
        ("2026-01-05 12:00+00", "infinity"),
        ("infinity", "infinity"),
        ("-infinity", "infinity"),
        ("2026-01-05 12:00+00", "2026-01-05 12:20+00"),
    ):
        world.session.execute(
            text("INSERT INTO maintenance_expert_inquiries (expert_id, asked_at, answered_at) VALUES ('zoe', :a, :b)"),
            {"a": asked, "b": answered},
        )
    world.inquiry("yan", NOON, NOON)

    assert times(world) == {"experts": 2, "failed": 0}
    assert response_time(world) == timedelta(minutes=20)
    assert response_time(world, "yan") == timedelta(0)


def test_an_answer_in_the_year_9999(world):
    world.expert()
    world.inquiry("zoe", NOON, NOON.replace(year=9999))

    assert times(world)["failed"] == 0
    assert response_time(world).days > 2_900_000


@pytest.mark.parametrize("sweep", [times, bios])
def test_in_batches_each_of_them_committed_and_passing_by_those_that_are_locked(world, engine, sweep):
    for number in range(7):
        world.expert(f"expert-{number}")
    with Session(engine) as other:
        other.execute(text("SELECT id FROM maintenance_task_experts WHERE id = 'expert-3' FOR UPDATE"))
        assert sweep(world, batch=2)["experts"] == 6

    assert len(world.checkpoints) == 3
    assert sweep(world, batch=2)["experts"] == 7


@pytest.mark.parametrize("update", [update_response_times, update_bios])
def test_four_sweeps_at_once_agree(world, engine, update):
    for number in range(60):
        world.expert(f"expert-{number:02}")
        world.inquiry(f"expert-{number:02}", NOON, NOON + HOUR)
        world.task("completed", taker_id=f"expert-{number:02}", category="cleaning")

    def one():
        with Session(engine) as own:
            return update(own, NOON, checkpoint=lambda _: own.commit(), batch=7)

    assert all(counts["failed"] == 0 for counts in race(one, one, one, one))
    update(world.session, NOON, checkpoint=world.checkpoint)
    expert = world.get(TaskExpert, "expert-59")
    assert expert.average_response_time == HOUR if update is update_response_times else "1 task" in expert.bio


@pytest.mark.parametrize("update", [update_response_times, update_bios])
def test_an_expert_that_the_database_refuses_does_not_keep_the_others(world, update):
    for name in ("a", "b", "c"):
        world.expert(name, average_response_time=2 * HOUR)
        world.inquiry(name, NOON, NOON + HOUR)
    world.session.execute(
        text("""
            CREATE FUNCTION refuse_b() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF new.id = 'b' THEN RAISE 'not b'; END IF; RETURN new; END $$;
            CREATE TRIGGER refuse_b BEFORE UPDATE ON maintenance_task_experts
            FOR EACH ROW EXECUTE FUNCTION refuse_b()
        """)
    )
    world.session.commit()

    try:
        assert update(world.session, NOON, checkpoint=world.checkpoint)["failed"] == 1
    finally:
        world.session.rollback()
        world.session.execute(text("DROP FUNCTION refuse_b CASCADE"))
        world.session.commit()
    update(world.session, NOON, checkpoint=world.checkpoint)
    assert world.get(TaskExpert, "c").bio or response_time(world, "c") == HOUR


def test_a_bio_is_made_of_tasks_reviews_and_response_time(world):
    world.expert(average_response_time=90 * timedelta(minutes=1))
    for category, number in (("gardening", 1), ("cleaning", 3), ("", 1)):
        for _ in range(number):
            task = world.task("completed", taker_id="zoe", category=category)
    world.task("taken", taker_id="zoe", category="cooking")
    for rating in (5, 4, 4):
        world.review(task, "zoe", rating)

    assert bios(world) == {"experts": 1, "changed": 1, "failed": 0}

    assert world.get(TaskExpert, "zoe").bio == (
        "5 tasks completed, mostly cleaning and gardening. Rated 4.3 by 3 people. Usually answers within 2 hours."
    )
    assert bios(world) == {"experts": 1, "changed": 0, "failed": 0}


@pytest.mark.parametrize(
    ("record", "bio"),
    [
        (Record(), "New here."),
        (Record(completed=1), "1 task completed."),
        (Record(completed=2, categories=["cleaning"]), "2 tasks completed, mostly cleaning."),
        (Record(completed=9, categories=["a", "b", "c"]), "9 tasks completed, mostly a, b and c."),
        (Record(reviews=1, rating=Decimal("4.25")), "New here. Rated 4.3 by 1 person."),
        (Record(reviews=2, rating=Decimal(5)), "New here. Rated 5.0 by 2 people."),
        (Record(response_time=timedelta(0)), "New here. Usually answers within 1 minute."),
        (Record(response_time=timedelta(minutes=60)), "New here. Usually answers within 60 minutes."),
        (Record(response_time=timedelta(minutes=61)), "New here. Usually answers within 2 hours."),
        (Record(response_time=timedelta(days=1, seconds=1)), "New here. Usually answers within 2 days."),
    ],
)
def test_sentences(record, bio):
    assert summary(record) == bio


def test_names_of_categories_may_hold_anything(world):
    world.expert()
    world.task("completed", taker_id="zoe", category="100% 'œuvre' :x %(y)s")

    assert bios(world)["changed"] == 1
    assert "100% 'œuvre' :x %(y)s" in world.get(TaskExpert, "zoe").bio
