"""Redemptions that are counted in Redis are added to the codes once each, and the rows of redemptions are the truth."""

from datetime import timedelta

import pytest
import redis
from invites_world import NOON
from sqlalchemy import select

from plugins.invites import count_redemption
from plugins.invites.counters import LIVE, PENDING, QUIET, REMEMBERED, forget, take
from plugins.invites.counting import add_counts, correct_counts, sync_counts
from plugins.invites.jobs import sync_redemption_counts
from plugins.invites.models import Code, CounterBatch

AT_ONCE = timedelta(0)
LATER = NOON + QUIET


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


def counted(world):
    world.session.rollback()
    return [*world.session.scalars(select(Code.counted).order_by(Code.id))]


def adds(world, client, settled=AT_ONCE):
    return add_counts(world.session, client, NOON, checkpoint=world.checkpoint, settled=settled)["added"]


def test_counts_are_added_to_their_codes(world, client):
    world.code()
    world.code()
    for code_id in (1, 2, 2):
        count_redemption(code_id, client)

    assert adds(world, client) == 3
    assert (counted(world), adds(world, client)) == ([1, 2], 0)
    assert not client.exists(LIVE, PENDING)


def test_a_batch_is_added_only_when_it_has_settled(world, client):
    world.code()
    count_redemption(1, client)

    assert adds(world, client, settled=timedelta(minutes=1)) == 0
    count_redemption(1, client)
    assert (client.hget(PENDING, "1"), client.hget(LIVE, "1")) == (b"1", b"1")

    client.hincrby(PENDING, "taken_at", -60)
    assert adds(world, client, settled=timedelta(minutes=1)) == 1
    assert (counted(world), client.hget(PENDING, "1")) == ([1], b"1")


def test_a_batch_that_comes_back_is_not_added_twice(world, client):
    world.code()
    count_redemption(1, client)
    take(client)
    pending = client.hgetall(PENDING)
    adds(world, client)

    client.hset(PENDING, mapping=pending)
    assert adds(world, client) == 0

    assert counted(world) == [1]
    assert not client.exists(PENDING)


def test_a_syncer_that_is_late_does_not_delete_the_batch_of_another(world, client):
    world.code()
    count_redemption(1, client)
    late = take(client)
    adds(world, client)
    count_redemption(1, client)
    following = take(client)

    forget(client, late.batch)

    assert take(client).batch == following.batch
    assert adds(world, client) == 1


def test_counts_of_a_missing_code_and_entries_of_others_do_not_stop_the_rest(world, client):
    world.code()
    count_redemption(1, client)
    client.hset(LIVE, mapping={"77": 5, "note": "x", "3": "many", "-1": 2, "9" * 30: 1})

    counts = add_counts(world.session, client, NOON, checkpoint=world.checkpoint, settled=AT_ONCE)

    assert (counts, counted(world)) == ({"added": 6, "unreadable": 4}, [1])


def test_a_counter_that_is_wrong_is_corrected_from_the_rows_and_reported(world, client):
    world.team(seats=5)
    codes = [world.code() for _ in range(3)]
    world.redeems(codes[0], "ann", "bob", "cid")
    world.redeems(codes[1], "dan")
    world.session.query(Code).filter_by(id=2).update({"counted": 7})
    world.session.commit()

    counts = sync_counts(world.session, client, LATER, checkpoint=world.checkpoint)
    world.session.commit()

    assert (counts["corrected"], counts["missing"], counts["surplus"]) == (2, 3, 6)
    assert counted(world) == [3, 1, 0]
    assert sync_counts(world.session, client, LATER, checkpoint=world.checkpoint)["corrected"] == 0


def test_a_code_that_is_in_use_is_not_corrected(world, client):
    world.team(seats=5)
    [first, second] = [world.code() for _ in range(2)]
    world.redeems(first, "ann", now=NOON + timedelta(seconds=1))
    world.redeems(second, "bob")
    count_redemption(2, client)

    assert correct_counts(world.session, client, LATER) == []
    take(client)
    assert correct_counts(world.session, client, LATER) == []
    assert [each.code_id for each in correct_counts(world.session, client, LATER + timedelta(seconds=1))] == [1]


def test_the_job_adds_what_an_earlier_run_has_taken(world, client, run_job, environment):
    world.code()
    count_redemption(1)

    assert run_job(sync_redemption_counts).result["added"] == 0
    client.hincrby(PENDING, "taken_at", -5)
    assert run_job(sync_redemption_counts).result["added"] == 1
    assert counted(world) == [0]  # no redemption has happened, so the counter was corrected


def test_old_batches_are_forgotten(world, client):
    world.code()
    count_redemption(1, client)
    adds(world, client)

    sync_counts(world.session, client, NOON + REMEMBERED + timedelta(seconds=1), checkpoint=world.checkpoint)

    assert world.session.scalars(select(CounterBatch)).all() == []
