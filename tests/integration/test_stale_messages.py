"""Leftovers in Redis: old messages and results of no use go, each logged; what could still run, and what is another's,
stays.
"""

import json
import logging
import threading
import time
from types import SimpleNamespace

import pytest
import redis
from click.testing import CliRunner
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from core import database as databases
from core import job, settings
from core.cli import main
from core.errors import LeftoversError
from core.ledger import identity, releases
from core.ledger.carrier import OutgoingMessage, OutgoingRun
from core.middleware.leftovers_search import LeftoversSearch
from core.operations import leftovers
from core.testing import registry_of
from core.transport import redis as transport
from core.transport.messages import fast_message, run_message
from core.transport.redis import ownership
from core.transport.redis.leftovers import Leftovers
from core.upkeep import clean_redis
from tests.support.emitted import emitted

HOUR_MS = 3_600_000
DAY_OLD = 25 * HOUR_MS
MANY = """
    INSERT INTO rota_runs (job, queue, state, finished_at)
    SELECT 'work', 'default', 'succeeded', now() FROM generate_series(1, 3000) RETURNING id
"""


@job("work")
def work(run):
    """Work."""


@job("hear", ledger=False)
def hear(run, word: str):
    """Hear."""


@job("was", ledger=False)
def was(run, word: str):
    """A job of an earlier release."""


def ended(ledger, state="succeeded"):
    """Insert a run that has ended. Return its id."""
    return ledger.request(state=state, finished_at="2026-01-01T00:00Z")


@pytest.fixture
def registry(environment, use_jobs):
    return use_jobs(work, hear, clean_redis)


class Box:
    """The Redis of a test."""

    def __init__(self, url):
        self.client = redis.Redis.from_url(url)
        self.queues = transport.Queues(self.client)

    def put(self, message, *, old_ms=DAY_OLD):
        """Enqueue a message that was sent ``old_ms`` ago. Return its id in Redis."""
        aged = message.copy(message_timestamp=int(time.time() * 1000) - old_ms)
        before = self.ids(message.queue_name)
        self.queues.enqueue_many([aged])
        (redis_id,) = self.ids(message.queue_name) - before
        return redis_id

    def run(self, run_id, *, queue="default", priority=0, **options):
        return self.put(run_message(OutgoingRun(run_id, "work", queue, priority)), **options)

    def fast(self, name, *, queue="default", **options):
        return self.put(fast_message(OutgoingMessage(name, queue, {"word": "hi"})), **options)

    def ids(self, queue="default"):
        return {each.decode() for each in self.client.hkeys(f"dramatiq:{queue}.msgs")}

    def waiting(self, queue="default"):
        listed = {each.decode() for each in self.client.lrange(f"dramatiq:{queue}", 0, -1)}
        return listed | {each.decode() for each in self.client.zrange(f"dramatiq:__urgent__.{queue}", 0, -1)}

    def bury(self, redis_id, *, queue="default", old_ms=DAY_OLD):
        """Fetch the message with this id. Dead-letter it as of ``old_ms`` ago."""
        self.queues.fetch(queue, 1000)
        self.queues.dead_letter(queue, [redis_id])
        self.queues.requeue(queue, self.queues.fetched(queue))
        self.client.zadd(f"dramatiq:{queue}.XQ", {redis_id: int(time.time() * 1000) - old_ms})
        return redis_id


@pytest.fixture
def box(redis_url, database):
    box = Box(redis_url)
    with database.connect() as connection:
        ownership.claim(box.client, identity.of(connection))
    yield box
    box.client.close()


@pytest.fixture
def clean(database, registry):
    def clean():
        with database.connect() as connection:

            def checkpoint(_progress):
                connection.commit()

            return leftovers.clean(lambda: connection, registry, settings.load(), by="a test", checkpoint=checkpoint)

    return clean


@pytest.fixture
def ran(database):
    """Return a function that records a release with the given jobs."""

    def record(*jobs):
        with databases.autocommit(database) as connection:
            releases.record(connection, releases.of(registry_of(*jobs)))

    return record


@pytest.mark.parametrize("priority", [0, 7])
@pytest.mark.parametrize("queue", ["default", "billing.DQ"])
def test_old_messages_of_ended_runs_go_and_all_others_stay(box, ledger, clean, priority, queue):
    over = [ended(ledger, state) for state in ("succeeded", "dead", "skipped", "missed", "orphaned")]
    alive = [ledger.request(state=state) for state in ("queued", "retrying")]
    old = {box.run(run_id, priority=priority, queue=queue) for run_id in [*over, 2**63 - 1]}
    kept = {box.run(run_id, priority=priority, queue=queue) for run_id in alive}
    kept.add(box.run(over[0], priority=priority, queue=queue, old_ms=23 * HOUR_MS))

    assert clean() == {"run ended": 6}

    assert box.ids(queue) == kept
    assert box.waiting(queue) == kept
    assert old.isdisjoint(kept)


def test_the_message_of_a_run_that_was_retried_meanwhile_is_not_its_new_message(box, ledger, clean):
    run_id = ended(ledger, "dead")
    box.run(run_id)
    ledger.do("UPDATE rota_runs SET state = 'retrying', finished_at = NULL WHERE id = :id", id=run_id)

    assert clean() == {}
    assert len(box.waiting()) == 1


def test_a_message_that_a_worker_has_fetched_stays(box, ledger, clean):
    fetched = box.run(ended(ledger))
    box.queues.fetch("default", 10)
    waiting = box.run(ended(ledger))

    assert clean() == {"run ended": 1}
    assert box.ids() == {fetched}
    assert box.queues.fetched("default") == {fetched}
    assert waiting not in box.ids()


def test_a_body_without_a_place_on_its_queue_goes_too(box, ledger, clean):
    leaked = box.run(ended(ledger))
    box.client.lrem("dramatiq:default", 1, leaked)

    assert clean() == {"run ended": 1}
    assert box.ids() == set()


def test_a_message_of_the_fast_lane_goes_only_if_no_release_ever_had_its_job(box, clean, ran, start_process):
    ran(was)
    kept = {box.fast("hear"), box.fast("was"), box.fast("nobody-has-it", old_ms=HOUR_MS)}
    box.fast("nobody-has-it")

    assert clean() == {"unknown job": 1}
    assert box.ids() == kept


def test_no_message_of_the_fast_lane_goes_while_a_live_process_has_not_named_its_jobs(box, clean, start_process):
    start_process()
    box.fast("nobody-has-it")

    assert clean() == {}


def test_no_release_can_come_between_the_check_and_the_removal(box, database, registry, ran):
    """A release with the job that is recorded meanwhile waits until the message has gone or stays."""
    box.fast("was")
    with database.connect() as connection, leftovers.opened(lambda: connection, registry, settings.load()) as stored:
        (found,) = [each for batch in stored.batches() for each in batch]
        connection.commit()
        ran(was)
        assert stored.remove([found], "a test") == []
        connection.commit()

        with databases.autocommit(database) as other:
            other.exec_driver_sql("DELETE FROM rota_releases")
        assert stored.remove([found], "a test") == [found]
        with databases.autocommit(database) as other:
            other.exec_driver_sql("SET lock_timeout = '100ms'")
            with pytest.raises(databases.DATABASE_AWAY, match="lock timeout"):
                releases.record(other, releases.of(registry_of(was)))


def test_a_dead_letter_that_people_may_want_to_read_stays(box, ledger, clean, database, registry):
    of_run, of_nobody = box.bury(box.run(ended(ledger))), box.bury(box.fast("nobody-has-it"))
    failed, young = box.bury(box.fast("hear")), box.bury(box.fast("hear"), old_ms=HOUR_MS)
    box.client.hset("dramatiq:default.XQ.msgs", "odd", b"\xff\x00 no message")
    box.client.zadd("dramatiq:default.XQ", {"odd": 1})

    with database.connect() as connection:
        found, is_complete, no_text = leftovers.look(connection, registry, settings.load())
    assert (is_complete, no_text) == (True, 0)
    assert {each.old.redis_id: str(each.kind) for each in found} == {
        of_run: "run ended",
        of_nobody: "unknown job",
        failed: "dead letter",
        "odd": "dead letter",
    }
    assert clean() == {"run ended": 1, "unknown job": 1}
    assert box.ids("default.XQ") == {failed, young, "odd"}

    with database.connect() as connection, leftovers.opened(lambda: connection, registry, settings.load()) as stored:
        stored.remove(found, "a test")
    assert box.ids("default.XQ") == {young}
    assert box.client.zrange("dramatiq:default.XQ", 0, -1) == [young.encode()]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff",
        b"{}",
        b"[1, 2]",
        b'{"queue_name": "default", "actor_name": 7}',
        "{message, run_id: true}",
        "{message, message_timestamp: text}",
        "{message, message_timestamp: infinity}",
        "{message, another redis_message_id}",
        "{message, before 1970}",
        "{message, actor with a NUL}",
        "{message, actor with a surrogate}",
    ],
)
def test_a_forged_message_on_a_queue_stays_for_a_worker_to_judge(box, clean, body):
    forged = vars(fast_message(OutgoingMessage("nobody-has-it", "default", {})))
    forged["options"] = {"redis_message_id": "forged"}
    forged["message_timestamp"] = 1
    if "run_id" in str(body):
        forged["options"]["run_id"] = True
    if "text" in str(body):
        forged["message_timestamp"] = "yesterday"
    if "infinity" in str(body):
        forged["message_timestamp"] = float("-inf")
    if "1970" in str(body):
        forged["message_timestamp"] = -(10**30)
    if "NUL" in str(body):
        forged["actor_name"] = "nobody\0has-it"
    if "surrogate" in str(body):
        forged["actor_name"] = "nobody\ud800has-it"
    if "another" in str(body):
        forged["options"]["redis_message_id"] = "another"
    box.client.hset("dramatiq:default.msgs", "forged", json.dumps(forged) if isinstance(body, str) else body)
    box.client.rpush("dramatiq:default", "forged")

    assert clean() == {}
    assert box.ids() == {"forged"}


def test_the_forged_message_above_would_go_if_it_were_well_formed(box, clean):
    forged = vars(fast_message(OutgoingMessage("nobody-has-it", "default", {})))
    forged |= {"options": {"redis_message_id": "forged"}, "message_timestamp": 1}
    box.client.hset("dramatiq:default.msgs", "forged", json.dumps(forged))
    box.client.rpush("dramatiq:default", "forged")

    assert clean() == {"unknown job": 1}


#: Names that are not UTF-8, or that PostgreSQL cannot store.
NO_TEXT = [b"\xff\x00", b"\xff", b"a\x00b", b"\xed\xb3\xbf"]


def test_names_that_are_no_text_stay_and_the_others_go(box, ledger, clean, database, registry):
    dead = box.bury(box.run(ended(ledger), queue="mail"), queue="mail")
    going = {dead, box.run(ended(ledger), queue="mail")}
    for name in NO_TEXT:
        box.client.rpush(b"dramatiq-results:" + name, "a result")
        idle(box, b"dramatiq-results:" + name)
        for queue in (b"mail", b"mail.XQ", b"mail" + name):
            box.client.hset(b"dramatiq:" + queue + b".msgs", name, b"a body")
        box.client.zadd("dramatiq:mail.XQ", {name: 1})
    box.client.rpush("dramatiq-results:old", "a result")
    idle(box, "dramatiq-results:old")
    before = set(box.client.keys()) - {b"dramatiq-results:old", b"dramatiq:mail"}

    with database.connect() as connection:
        told = json.loads(leftovers.listed(connection, registry, settings.load()).model_dump_json())
    assert {each["redis_id"] for each in told["items"]} == {*going, "dramatiq-results:old"}
    assert told["no_text"] == 4 * len(NO_TEXT)
    assert "16 keys and ids are left alone" in CliRunner().invoke(main, ["orphans", "messages"]).output

    assert clean() == {"run ended": 2, "result": 1, "no text": 4 * len(NO_TEXT)}
    assert set(box.client.keys()) == before
    for queue in ("mail", "mail.XQ"):
        assert set(box.client.hkeys(f"dramatiq:{queue}.msgs")) == set(NO_TEXT)


@pytest.mark.parametrize("score", [float("-inf"), float("inf"), -(10.0**30)])
def test_a_dead_letter_without_a_time_stays(box, database, registry, score):
    box.client.hset("dramatiq:default.XQ.msgs", "odd", b"no message")
    box.client.zadd("dramatiq:default.XQ", {"odd": score})

    with database.connect() as connection:
        assert leftovers.listed(connection, registry, settings.load()).items == []


def test_keys_of_others_stay(box, ledger, clean):
    others = {
        "celery": ("rpush", "a"),
        "other:default.msgs": ("hset", "a", "b"),
        "dramatiq-other:default.msgs": ("hset", "a", "b"),
        "dramatiq:billing.msgs": ("set", "no hash"),
        "dramatiq-results:x:y:text": ("set", "no list"),
        "0123456789abcdef0123456789abcdef": ("rpush", "a result, or not"),
        "rota:ledger:x": ("set", "1"),
    }
    for key, (command, *values) in others.items():
        getattr(box.client, command)(key, *values)
    box.run(ended(ledger))

    before = set(box.client.keys()) - {b"dramatiq:default", b"dramatiq:default.msgs"}
    assert clean() == {"run ended": 1}
    assert set(box.client.keys()) == before


def idle(box, key):
    """Make a key idle for a day: Redis keeps the idle time in RESTORE."""
    dumped, ttl = box.client.dump(key), max(box.client.pttl(key), 0)
    box.client.restore(key, ttl, dumped, replace=True, idletime=25 * 3600)


def test_results_that_never_expire_and_that_nobody_uses_go(box, clean):
    backend = RedisBackend(client=box.client, use_namespace_prefix_keys=True)
    stored = {}
    for name in ("forgotten", "expiring", "used"):
        message = SimpleNamespace(queue_name="default", actor_name="hear", message_id=name)
        backend.store_result(message, "done", 600_000)
        stored[name] = backend.build_message_key(message)
    for name in ("forgotten", "used"):
        box.client.persist(stored[name])
    for name in ("forgotten", "expiring"):
        idle(box, stored[name])

    assert clean() == {"result": 1}
    assert {each.decode() for each in box.client.keys("dramatiq-results:*")} == {stored["expiring"], stored["used"]}


@pytest.mark.parametrize("is_readable", [False, True])
def test_the_result_of_a_message_goes_with_it(box, clean, is_readable):
    backend = RedisBackend(client=box.client, use_namespace_prefix_keys=is_readable)
    assert Results(backend=backend)
    message = fast_message(OutgoingMessage("nobody-has-it", "default", {}))
    other = fast_message(OutgoingMessage("nobody-has-it", "default", {}))
    box.put(message)
    for each in (message, other):
        backend.store_result(each, "done", 600_000)

    clean()

    assert not box.client.exists(backend.build_message_key(message))
    assert box.client.exists(backend.build_message_key(other))


def test_each_removal_is_logged_with_the_one_who_asked(box, ledger, clean, caplog):
    for _ in range(3):
        box.run(ended(ledger))

    with caplog.at_level(logging.INFO):
        clean()

    (event,) = emitted(caplog, "leftovers.removed")
    assert (event.kind, event.queue, event.job, event.leftovers, event.by) == (
        "run ended", "default", "work", 3, "a test",
    )  # fmt: skip


def test_a_redis_of_another_ledger_is_left_alone(box, ledger, clean):
    box.run(ended(ledger))
    box.client.set(ownership.KEY, "another/1/public")

    with pytest.raises(LeftoversError, match="another/1/public"):
        clean()

    box.client.delete(ownership.KEY)
    with pytest.raises(LeftoversError, match="not known whose"):
        clean()
    assert len(box.ids()) == 1


def test_many_are_removed_in_batches(box, ledger, clean):
    with ledger.engine.begin() as connection:
        ids = connection.exec_driver_sql(MANY).scalars().all()
    messages = [run_message(OutgoingRun(run_id, "work", "default")) for run_id in ids]
    box.queues.enqueue_many(each.copy(message_timestamp=1_700_000_000_000) for each in messages)

    assert clean() == {"run ended": 3000}
    assert box.ids() == box.waiting() == set()


def test_starting_workers_request_one_search(database, registry, ledger):
    for _ in range(3):
        with database.begin() as connection:
            leftovers.request_search(connection, registry)

    assert ledger.states("clean-redis") == ["queued"]

    ledger.do(
        "UPDATE rota_runs SET queued_at = queued_at - interval '11 minutes', state = 'succeeded', finished_at = now()"
    )
    with database.begin() as connection, database.begin() as other:
        assert leftovers.request_search(connection, registry)
        assert not leftovers.request_search(other, registry)


@pytest.mark.parametrize("state", ["queued", "retrying", "running"])
def test_no_search_is_requested_while_one_waits_or_works(database, registry, ledger, state):
    with database.begin() as connection:
        assert leftovers.request_search(connection, registry)
    ledger.do("UPDATE rota_runs SET state = :state, queued_at = queued_at - interval '11 hours'", state=state)

    with database.begin() as connection:
        assert not leftovers.request_search(connection, registry)


def test_a_leftover_that_redis_names_twice_is_listed_once(box, ledger, database, registry, monkeypatch):
    """HSCAN and SCAN may return an element again while a hash or the keys grow."""
    box.run(ended(ledger))
    once = Leftovers.old

    def twice(self, *given):
        for batch in once(self, *given):
            yield from (batch, batch)

    monkeypatch.setattr(Leftovers, "old", twice)
    with database.connect() as connection:
        found = leftovers.listed(connection, registry, settings.load())

    assert [each.messages for each in found.counts] == [1]
    assert len(found.items) == 1


def test_the_command_and_the_api_list_them(box, ledger, registry, client):
    run_id = ended(ledger)
    redis_id = box.run(run_id)
    rota = CliRunner()

    told = json.loads(rota.invoke(main, ["orphans", "messages", "--json"]).output)

    assert told["is_complete"]
    assert told["counts"] == [{"kind": "run ended", "queue": "default", "job": "work", "messages": 1}]
    assert [(each["redis_id"], each["run"]) for each in told["items"]] == [(redis_id, run_id)]
    shown = rota.invoke(main, ["orphans", "messages"]).output
    assert "run ended" in shown
    assert len(box.ids()) == 1


@pytest.mark.parametrize("is_registered", [True, False])
def test_a_worker_that_has_started_requests_a_search(database, registry, ledger, is_registered):
    heartbeat = SimpleNamespace(registered=threading.Event())
    if is_registered:
        heartbeat.registered.set()

    LeftoversSearch(database, registry, heartbeat).after_worker_boot(None, None)

    assert ledger.states("clean-redis") == ["queued"] * is_registered


def test_a_worker_that_starts_while_postgresql_is_away_goes_on(database, registry, caplog):
    heartbeat = SimpleNamespace(registered=threading.Event())
    heartbeat.registered.set()
    with databases.autocommit(database) as connection:
        connection.exec_driver_sql("ALTER TABLE rota_runs RENAME TO rota_away")
    try:
        LeftoversSearch(database, registry, heartbeat).after_worker_boot(None, None)
    finally:
        with databases.autocommit(database) as connection:
            connection.exec_driver_sql("ALTER TABLE rota_away RENAME TO rota_runs")

    (event,) = emitted(caplog, "leftovers.not_searched")
    assert "rota_runs" in event.error


def test_a_dead_letter_whose_job_came_meanwhile_stays(box, database, registry, ran):
    box.bury(box.fast("was"))
    with database.connect() as connection, leftovers.opened(lambda: connection, registry, settings.load()) as stored:
        found = [each for batch in stored.batches() for each in batch]
        assert [str(each.kind) for each in found] == ["unknown job"]
        connection.commit()
        ran(was)

        assert stored.remove(found, "a test") == []
