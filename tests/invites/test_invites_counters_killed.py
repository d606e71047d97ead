"""Counters stay exact although those that add them are killed at every point, and although Redis loses its last second.

INVITES_CRASHES and INVITES_INCREMENTS ask for more than CI does.
"""

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from dying_syncers import CODES, WRITERS
from invites_world import NOON
from sqlalchemy import func, select

from core.embedded.redis import EmbeddedRedis
from plugins.invites import count_redemption
from plugins.invites.counters import QUIET, SETTLED, take
from plugins.invites.counting import add_counts, sync_counts
from plugins.invites.models import Code, CounterBatch

CRASHES = int(os.environ.get("INVITES_CRASHES", "30"))
INCREMENTS = int(os.environ.get("INVITES_INCREMENTS", "1000"))
AT_ONCE = timedelta(0)


def total(world, column):
    world.session.rollback()
    return int(world.session.scalar(select(func.coalesce(func.sum(column), 0))))


def adds(world, client, settled=AT_ONCE):
    return add_counts(world.session, client, NOON, checkpoint=world.checkpoint, settled=settled)["added"]


@pytest.mark.crash
@pytest.mark.timeout(900)
def test_the_sum_is_exact_although_syncers_are_killed_at_every_point(world, redis_url):
    for _ in range(CODES):
        world.code()
    program = Path(__file__).with_name("dying_syncers.py")
    command = [sys.executable, str(program), str(CRASHES), str(INCREMENTS)]

    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)

    assert (ran.returncode, int(ran.stdout)) == (0, CRASHES), ran.stderr
    with redis.Redis.from_url(redis_url) as client:
        adds(world, client)
        adds(world, client)
    assert total(world, Code.counted) == total(world, CounterBatch.counted) == WRITERS * INCREMENTS


class PowerCut:
    """A Redis whose disk has only what was written until ``sync``, after a power cut."""

    def __init__(self, server: EmbeddedRedis) -> None:
        self.server = server
        self.log = server.data / "appendonly.aof"
        self.on_disk = self.log.with_name("on_disk")

    def sync(self) -> None:
        shutil.copy(self.log, self.on_disk)

    def cut(self) -> None:
        self.server.kill()
        shutil.copy(self.on_disk, self.log)
        self.server.start()

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url)


@pytest.fixture
def power(tmp_path):
    server = EmbeddedRedis(tmp_path)
    server.start()
    yield PowerCut(server)
    server.stop()


def test_increments_that_redis_has_lost_are_corrected_from_the_rows_and_reported(world, power):
    world.team(seats=5)
    world.redeems(world.code(), "ann", "bob", "cid")
    with power.client() as client:
        count_redemption(1, client)
        power.sync()
        count_redemption(1, client)
        count_redemption(1, client)
    power.cut()

    with power.client() as client:
        assert adds(world, client) == 1
        counts = sync_counts(world.session, client, NOON + QUIET, checkpoint=world.checkpoint)
    assert (counts["corrected"], counts["missing"]) == (1, 2)
    assert world.session.scalar(select(Code.counted)) == 3


def test_a_batch_whose_deletion_redis_has_lost_is_not_added_twice(world, power):
    world.code()
    with power.client() as client:
        count_redemption(1, client)
        take(client)
        power.sync()
        assert adds(world, client) == 1
    power.cut()

    with power.client() as client:
        count_redemption(1, client)
        assert (adds(world, client), adds(world, client)) == (0, 1)
    assert total(world, Code.counted) == 2


def test_a_batch_whose_taking_redis_has_lost_was_not_added_before(world, power):
    """Without SETTLED, PostgreSQL would have the batch, and Redis its increments under another batch id."""
    world.code()
    with power.client() as client:
        count_redemption(1, client)
        power.sync()
        assert adds(world, client, settled=SETTLED) == 0
    power.cut()

    with power.client() as client:
        assert take(client).counts == {1: 1}
        adds(world, client)
        adds(world, client)
    assert total(world, Code.counted) == 1
