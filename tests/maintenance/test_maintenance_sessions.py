"""Sessions on a real Redis: leftovers are removed and valid sessions stay, even while users log in."""

import json
import threading
import time
from datetime import timedelta
from itertools import pairwise

import pytest
import redis
from maintenance_world import ignore

from plugins.maintenance import NoRedis, application_redis, clean_sessions, on_login, on_logout, sessions
from plugins.maintenance.application_redis import STEP, client
from plugins.maintenance.settings import MaintenanceSettings
from tests.support.racing import race

AT_ONCE = timedelta(0)
HOUR = 3600
NOTHING = {"inactive": 0, "gone": 0, "unreadable": 0}
ACTIVE, INACTIVE = json.dumps({"is_active": True}), json.dumps({"user_id": "ann", "is_active": False})


@pytest.fixture
def store(redis_url):
    """Return the application's Redis, without keys."""
    connection = redis.Redis.from_url(redis_url)
    yield connection
    connection.close()


def log_in(store, user_id, session_id, value=ACTIVE):
    store.set(f"session:{session_id}", value, ex=HOUR)
    store.sadd(f"user_sessions:{user_id}", session_id)


def clean(store, **options):
    return clean_sessions(store, **{"settling": AT_ONCE, **options})


def test_all_three_kinds_and_the_set_are_cleaned_and_what_is_valid_stays(store):
    log_in(store, "ann", "a"), log_in(store, "ann", "b", INACTIVE), log_in(store, "bob", "c", INACTIVE)
    store.sadd("user_sessions:ann", "expired")
    for kind in ("service_session:mail", "admin_session:root"):
        store.set(f"{kind}:x", ACTIVE, ex=HOUR)
        store.set(f"{kind}:y", INACTIVE, ex=HOUR)

    assert clean(store) == {"inactive": 4, "gone": 3, "unreadable": 0}

    assert sorted(store.keys()) == [
        b"admin_session:root:x",
        b"service_session:mail:x",
        b"session:a",
        b"user_sessions:ann",
    ]
    assert store.smembers("user_sessions:ann") == {b"a"}
    assert 0 < store.ttl("session:a") <= HOUR
    assert clean(store) == NOTHING


@pytest.mark.parametrize(
    "value",
    ['{"is_active": true}', "{}", '{"is_active": null}', '{"is_active": 0}', '{"is_active": "false"}', "[]", "[false]"],
)
def test_only_what_is_marked_inactive_is_inactive(store, value):
    log_in(store, "ann", "a", value)

    assert clean(store)["inactive"] == 0
    assert store.get("session:a") == value.encode()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b'{"is_active": false',
        b"null",
        b"12",
        b'"is_active"',
        b"[" * 2000,
        b"x" * 1_000_001,
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_value_that_is_no_json_object_is_left_alone_and_counted(store, value):
    log_in(store, "ann", "a", value)
    log_in(store, "ann", "b", INACTIVE)

    assert clean(store) == {"inactive": 1, "gone": 1, "unreadable": 1}
    assert store.get("session:a") == value
    assert store.smembers("user_sessions:ann") == {b"a"}


def test_keys_of_other_types_and_other_names_are_left_alone(store):
    store.hset("session:hash", "is_active", "false")
    store.lpush("admin_session:1:list", INACTIVE)
    store.set("user_sessions:string", "a")
    for name in ("my_session:a", "sessions:a", "session", "user_session:a", "xservice_session:1:a", "cache:session:a"):
        store.set(name, INACTIVE)
    before = sorted(store.keys())

    assert clean(store) == {"inactive": 0, "gone": 0, "unreadable": 3}
    assert sorted(store.keys()) == before


def test_ids_may_be_any_bytes(store):
    for member in (b"\xff\xfe", b"a b", b"*", b"a\nb", b"\x00", b"[a-z]"):
        store.sadd(b"user_sessions:\xff", member, member + b"-gone")
        store.set(b"session:" + member, ACTIVE)

    assert clean(store) == {"inactive": 0, "gone": 6, "unreadable": 0}
    assert store.scard(b"user_sessions:\xff") == 6


def test_more_than_one_step_of_everything(store):
    """Sets that Redis lists in several pages, and more keys than one SCAN returns."""
    for number in range(3 * STEP):
        log_in(store, f"user-{number}", f"s-{number}", ACTIVE if number % 3 else INACTIVE)
    store.sadd("user_sessions:many", *(f"gone-{number}" for number in range(5 * STEP)), "s-1")

    assert clean(store) == {"inactive": STEP, "gone": 6 * STEP, "unreadable": 0}
    assert store.smembers("user_sessions:many") == {b"s-1"}


def test_each_step_is_a_checkpoint_and_asks_for_no_more_than_a_step(store, monkeypatch):
    for number in range(4 * STEP):
        log_in(store, f"user-{number}", f"s-{number}", INACTIVE)
    progress, scan = [], redis.Redis.scan
    asked = []
    monkeypatch.setattr(
        redis.Redis,
        "scan",
        lambda self, *args, **options: asked.append(options["count"]) or scan(self, *args, **options),
    )
    monkeypatch.setattr(redis.Redis, "keys", lambda *_: pytest.fail("KEYS"))

    clean(store, checkpoint=lambda counts: progress.append(sum(counts.values())))

    assert progress == sorted(progress)
    assert progress[-1] == 8 * STEP
    assert max(later - earlier for earlier, later in pairwise(progress)) <= 2 * STEP
    assert set(asked) == {STEP}


def test_a_lost_lease_stops_the_walk(store):
    for number in range(3 * STEP):
        store.set(f"session:{number}", INACTIVE)

    def lose(progress):
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        clean(store, checkpoint=lose)
    assert store.dbsize() > STEP


def test_memory_stays_the_same_because_suspects_are_looked_at_again_before_there_are_too_many(store, monkeypatch):
    monkeypatch.setattr(sessions, "SUSPECTS", 50)
    monkeypatch.setattr(application_redis, "STEP", 10)
    for number in range(400):
        store.sadd(f"user_sessions:{number}", *(f"gone-{number}-{member}" for member in range(5)))
    waiting, suspect = [], sessions.Cleaning._suspect

    def noted(self, *args):
        suspect(self, *args)
        waiting.append(self.waiting)

    monkeypatch.setattr(sessions.Cleaning, "_suspect", noted)

    assert clean_sessions(store, settling=timedelta(milliseconds=100))["gone"] == 2000
    assert store.dbsize() == 0
    assert max(waiting) < 50 + 20 * 5, "and a step's worth of sets"


def test_an_application_that_adds_the_member_first_has_a_second_to_store_the_session(store):
    """A member whose session does not exist yet may be a log-in in progress, and not a leftover."""
    store.sadd("user_sessions:ann", "a", "gone")
    started = threading.Thread(target=lambda: (time.sleep(0.2), store.set("session:a", ACTIVE)))
    started.start()

    counts = clean_sessions(store, settling=timedelta(seconds=0.6))
    started.join()

    assert counts["gone"] == 1
    assert store.smembers("user_sessions:ann") == {b"a"}


def test_a_session_made_again_between_looking_and_removing_keeps_its_member(store, monkeypatch):
    log_in(store, "ann", "a")
    store.delete("session:a")
    remove = sessions.Cleaning._remove_gone

    def log_in_again_first(self, *args):
        store.set("session:a", ACTIVE)
        remove(self, *args)

    monkeypatch.setattr(sessions.Cleaning, "_remove_gone", log_in_again_first)

    assert clean(store)["gone"] == 0
    assert store.smembers("user_sessions:ann") == {b"a"}


@pytest.mark.slow
@pytest.mark.parametrize("member_first", [False, True])
def test_nothing_valid_is_removed_while_users_log_in_and_out(store, redis_url, member_first):
    """Four applications log users in and out while two sweeps run. At the end, every valid session exists and is in its
    set.
    """
    stop = threading.Event()

    def application(name):
        def run():
            mine, valid = redis.Redis.from_url(redis_url), {}
            try:
                for number in range(400):
                    user, session = f"user-{number % 7}", f"{name}-{number}"
                    if member_first:
                        mine.sadd(f"user_sessions:{user}", session)
                        mine.set(f"session:{session}", ACTIVE, ex=HOUR)
                    else:
                        log_in(mine, user, session)
                    valid[session] = user
                    if number % 3 == 0:
                        mine.set(f"session:{session}", INACTIVE, ex=HOUR)
                        del valid[session]
                    if number % 5 == 0 and session in valid:
                        mine.delete(f"session:{session}")
                        mine.set(f"session:{session}", ACTIVE, ex=HOUR)  # the same session, made again
                return valid
            finally:
                stop.set()
                mine.close()

        return run

    def sweep():
        mine, sweeps = redis.Redis.from_url(redis_url), 0
        settling = timedelta(seconds=0.3) if member_first else timedelta(seconds=0.01)
        while not stop.is_set() or not sweeps:
            clean_sessions(mine, settling=settling)
            sweeps += 1
        mine.close()
        return {}

    *valid, _, _ = race(*(application(name) for name in "abcd"), sweep, sweep)

    for session, user in {key: value for some in valid for key, value in some.items()}.items():
        assert store.get(f"session:{session}") == ACTIVE.encode()
        assert store.sismember(f"user_sessions:{user}", session)
    clean(store)
    assert sum(store.scard(key) for key in store.keys("user_sessions:*")) == sum(map(len, valid))


def test_four_sweeps_at_once_count_each_removal_once(store, redis_url):
    for number in range(500):
        log_in(store, f"user-{number % 50}", f"s-{number}", INACTIVE if number % 2 else ACTIVE)

    def one():
        with redis.Redis.from_url(redis_url) as mine:
            return clean_sessions(mine, settling=timedelta(milliseconds=50))

    done = race(one, one, one, one)

    assert {what: sum(counts[what] for counts in done) for what in NOTHING} == {
        "inactive": 250,
        "gone": 250,
        "unreadable": 0,
    }


def test_a_crash_between_any_two_commands_loses_nothing(store, monkeypatch):
    for number in range(200):
        log_in(store, "ann", f"a-{number}", ACTIVE), log_in(store, "ann", f"i-{number}", INACTIVE)
        execute = redis.connection.AbstractConnection.send_packed_command
        sent = []

        def send(self, *args, execute=execute, sent=sent, number=number, **options):
            sent.append(args)
            if len(sent) > number:
                raise redis.ConnectionError
            return execute(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(redis.connection.AbstractConnection, "send_packed_command", send)
            try:
                clean(store)
            except redis.ConnectionError:
                pass
            else:
                assert number > 4
                break
        assert store.sismember("user_sessions:ann", f"a-{number}")
    clean(store)
    assert set(store.keys("session:*")) == {f"session:a-{n}".encode() for n in range(number + 1)}
    assert store.scard("user_sessions:ann") == number + 1


def test_log_in_cleans_up_that_user_alone(store):
    for user in ("ann", "bob"):
        log_in(store, user, f"{user}-now"), log_in(store, user, f"{user}-old", INACTIVE)
        store.sadd(f"user_sessions:{user}", f"{user}-gone")

    assert on_login("ann", redis=store) == {"inactive": 1, "gone": 2, "unreadable": 0}

    assert store.smembers("user_sessions:ann") == {b"ann-now"}
    assert store.scard("user_sessions:bob") == 3
    assert store.exists("session:bob-old")


def test_log_in_of_a_user_without_sessions_or_with_something_else_under_the_key(store):
    assert on_login("nobody", redis=store) == NOTHING
    store.set("user_sessions:odd", "x")
    assert on_login("odd", redis=store) == {"inactive": 0, "gone": 0, "unreadable": 1}


def test_log_out_ends_that_session_and_no_other(store):
    log_in(store, "ann", "a"), log_in(store, "ann", "b"), log_in(store, "bob", "c")

    assert on_logout("ann", "a", redis=store) == {"ended": 1, **NOTHING}
    assert on_logout("ann", "a", redis=store) == {"ended": 0, **NOTHING}
    assert on_logout("ann", "c", redis=store) == {"ended": 0, **NOTHING}, "a session of somebody else"

    assert sorted(store.keys("session:*")) == [b"session:b", b"session:c"]
    assert store.smembers("user_sessions:ann") == {b"b"}


@pytest.mark.parametrize("user_id", ["ann", "7", "é"])
@pytest.mark.parametrize("value", ['{"user_id": "%s"}', '{"user_id": %s}', '{"is_active": true}', "{}", "not json"])
def test_log_out_ends_a_session_whose_id_is_not_in_the_users_set(store, user_id, value):
    store.set("session:a", value.replace("%s", user_id), ex=HOUR)
    store.set("user_sessions:broken", "no set")

    assert on_logout(user_id, "a", redis=store)["ended"] == 1
    assert not store.exists("session:a")


@pytest.mark.parametrize("value", ['{"user_id": "bob"}', '{"user_id": 8}'])
def test_log_out_leaves_a_session_that_names_somebody_else(store, value):
    store.set("session:a", value, ex=HOUR)

    assert on_logout("ann", "a", redis=store)["ended"] == 0
    assert store.exists("session:a")


def test_a_client_that_decodes_does_as_well(redis_url, store):
    log_in(store, "ann", "é", INACTIVE)
    with redis.Redis.from_url(redis_url, decode_responses=True) as decoding:
        assert clean(decoding, checkpoint=ignore) == {"inactive": 1, "gone": 1, "unreadable": 0}
        store.set("session:b", "{}")
        assert on_logout("ann", "b", redis=decoding)["ended"] == 1


def test_the_redis_of_the_application_may_be_another_than_that_of_the_service(redis_url, store, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_url)
    MaintenanceSettings.forget()
    log_in(store, "ann", "a", INACTIVE)
    assert on_login("ann") == {"inactive": 1, "gone": 1, "unreadable": 0}

    monkeypatch.setenv("ROTA_MAINTENANCE_REDIS_URL", redis_url.rpartition("/")[0] + "/5")
    MaintenanceSettings.forget()
    assert client().connection_pool.connection_kwargs["db"] == 5

    monkeypatch.delenv("ROTA_MAINTENANCE_REDIS_URL")
    monkeypatch.delenv("REDIS_URL")
    MaintenanceSettings.forget()
    with pytest.raises(NoRedis, match="neither ROTA_MAINTENANCE_REDIS_URL nor REDIS_URL"):
        client()
