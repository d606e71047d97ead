"""When Redis counts as away, and when it counts as back."""

import pytest
import redis

from core.transport.redis.availability import TRUSTED_AFTER_SECONDS, RedisWatch

REFUSED = redis.ConnectionError("refused")
SILENT = redis.TimeoutError("silent")


@pytest.fixture
def watch(tmp_path, monkeypatch):
    from core.observability import metrics

    monkeypatch.setattr(metrics, "travelling", lambda *, by_ledger: told.append(by_ledger))
    told: list[bool] = []
    made = RedisWatch(redis.Redis(), redis.Redis.ping)
    made.told = told
    return made


@pytest.mark.parametrize("error", [REFUSED, redis.ReadOnlyError("a replica"), redis.OutOfMemoryError("full")])
def test_an_error_is_an_outage(watch, error):
    watch.look(error, 0)

    assert watch.is_away.is_set()


def test_one_slow_answer_is_none_and_two_in_a_row_are(watch):
    for answer in (SILENT, None, SILENT):
        watch.look(answer, 0)
    assert not watch.is_away.is_set()

    watch.look(SILENT, 1)
    assert watch.is_away.is_set()


def test_it_is_trusted_once_it_has_answered_for_a_while_without_a_break(watch):
    watch.look(REFUSED, 0)
    for now, answer in ((1, None), (4, None), (4.5, REFUSED), (5, None), (5 + TRUSTED_AFTER_SECONDS - 0.1, None)):
        watch.look(answer, now)
    assert watch.is_away.is_set()

    watch.look(None, 5 + TRUSTED_AFTER_SECONDS)
    assert not watch.is_away.is_set()


def test_both_changes_are_said_once(watch, caplog):
    for now in range(3):
        watch.look(REFUSED, now)
    for now in range(3, 20):
        watch.look(None, now)

    assert [record.message.partition(":")[0] for record in caplog.records] == ["redis.away", "redis.back"]
    assert watch.told == [True, False]
