"""I1: the waiting runs and messages of a job that is gone end as orphaned. Those of jobs of other processes stay."""

import threading
import time
from contextlib import closing
from datetime import timedelta
from itertools import pairwise

import pytest
import redis
from dramatiq.message import Message
from dramatiq.middleware import CurrentMessage
from prometheus_client import REGISTRY
from sqlalchemy.exc import OperationalError

from core import database as databases
from core import every, job
from core.dispatcher import sending
from core.dispatcher.accounting import Accountant
from core.dispatcher.loop import PLANS
from core.dispatcher.orphans import LOOK_SECONDS, OrphanKeeper, reason
from core.jobs.registry import Plugin, Registry
from core.ledger import orphans, releases, slots
from core.ledger.releases import Fleet
from core.observability.events import (
    DispatcherQueueNotCleared,
    DispatcherQueuesNotSearched,
    MessageCleared,
    MessageDropped,
    MessageNotRequeued,
    MessageOrphaned,
    MessageUndecided,
    RunMoved,
    RunOrphaned,
    RunReadopted,
    SlotForgotten,
)
from core.testing import registry_of
from core.transport import redis as redis_broker
from core.transport.redis import Queues, RedisCarrier, RotaBroker, connect
from core.transport.redis.abandoned_queues import AbandonedQueues
from core.transport.redis.unknown_actors import PAUSE_SECONDS, UnknownActors
from tests.support.emitted import emitted
from tests.support.eventually import eventually

GRACE = 60.0
#: Runs that are inserted in one transaction.
ROWS_READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'rota_runs'"


@job("work", overlap="allow")
def work(run):
    pass


@job("gone", overlap="allow")
def gone(run):
    pass


@job("gone-tick", schedule=every(seconds=1))
def gone_tick(run):
    pass


@job("gone-fast", queue="gone", ledger=False)
def gone_fast(run):
    pass


@pytest.fixture
def connection(database):
    """Yield the dispatcher's connection."""
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def make_broker(redis_url):
    """Yield a function that makes brokers of processes with different jobs, on one Redis."""
    made = []

    def make(**options):
        made.append(RotaBroker(redis_broker.connect(redis_url), middleware=[CurrentMessage()], **options))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def ran(connection):
    """Record a release with these jobs."""
    return lambda *jobs: releases.record(connection, releases.of(registry_of(*jobs)))


@pytest.fixture
def age_releases(ledger):
    """Let all processes of all releases be away for this long."""
    statement = """
        UPDATE rota_releases SET last_seen_at = last_seen_at - CAST(:by AS interval),
                                 first_seen_at = first_seen_at - CAST(:by AS interval)
    """
    return lambda by="1 minute": ledger.do(statement, by=by)


@pytest.fixture
def gone_before(ran, age_releases):
    """Record a release with the jobs ``gone`` and ``gone-tick``, which was last seen a minute ago."""
    ran(gone, gone_tick)
    age_releases()


@pytest.fixture
def orphan_keeper(make_broker):
    """Return the orphan keeper of a dispatcher, in a process with only the job ``work``."""
    return OrphanKeeper(registry_of(work), RedisCarrier(make_broker().redis_queues), GRACE)


@pytest.fixture
def look(orphan_keeper, connection):
    """Let the orphan keeper look at a given second."""
    return lambda at: orphan_keeper.look(connection, releases.fleet(connection), at)


def counted(task):
    return REGISTRY.get_sample_value("scheduled_task_total", {"task": task, "status": "orphaned"}) or 0


@pytest.mark.usefixtures("gone_before")
class TestRuns:
    def test_waiting_and_dead_runs_of_a_job_that_is_gone_end_without_an_attempt(
        self, look, ledger, start_process, caplog
    ):
        start_process(jobs=[work])
        now, later = ledger.value("SELECT now()"), ledger.value("SELECT now() + interval '1 hour'")
        ids = {
            "queued": ledger.request("gone"),
            "delayed": ledger.request("gone", due_at=later),
            "slot": ledger.request("gone", slot=now),
            "retrying": ledger.request("gone", state="retrying", reason="error", attempt=2, due_at=later),
            "dead": ledger.request("gone", state="dead", reason="retries", attempt=4, finished_at=now),
        }
        others = [ledger.request("gone", state=state, finished_at=now) for state in ("succeeded", "missed", "skipped")]
        kept = ledger.request("work")
        before = counted("gone")

        look(0)
        assert {ledger.run(run_id).state for run_id in ids.values()} == {"queued", "retrying", "dead"}
        look(GRACE)

        rows = {name: ledger.run(run_id) for name, run_id in ids.items()}
        assert {(row.state, row.reason) for row in rows.values()} == {("orphaned", "unknown")}
        assert {name: row.attempt for name, row in rows.items()} == {
            "queued": 0, "delayed": 0, "slot": 0, "retrying": 2, "dead": 4
        }  # fmt: skip
        assert (rows["dead"].former_state, rows["dead"].former_reason) == ("dead", "retries")
        assert all(row.finished_at is not None and row.started_at is None for row in rows.values())
        assert [ledger.run(run_id).state for run_id in others] == ["succeeded", "missed", "skipped"]
        assert ledger.run(kept).state == "queued"
        assert counted("gone") - before == len(ids)
        assert emitted(caplog, "run.orphaned") == [RunOrphaned("gone", len(ids), "unknown")]

    def test_great_numbers_are_ended_in_batches(self, look, ledger, start_process, monkeypatch):
        monkeypatch.setattr(orphans, "BATCH", 7)
        start_process(jobs=[work])
        for _ in range(30):
            ledger.request("gone")

        look(0), look(GRACE)

        assert ledger.states("gone") == ["orphaned"] * 30

    @pytest.mark.parametrize("kind", ["worker", "scheduler"])
    def test_nothing_is_orphaned_while_a_live_process_has_the_job(
        self, look, ledger, start_process, age_releases, kind
    ):
        start_process(jobs=[work])
        old = start_process(jobs=[work, gone], kind=kind)
        ledger.request("gone")

        look(0), look(GRACE)
        assert ledger.states("gone") == ["queued"]
        ledger.do("DELETE FROM rota_processes WHERE id = :id", id=old.id)
        age_releases()
        look(2 * GRACE)
        assert ledger.states("gone") == ["queued"]
        look(3 * GRACE)
        assert ledger.states("gone") == ["orphaned"]

    def test_a_job_that_is_back_within_the_grace_restarts_it(self, look, ledger, start_process, age_releases):
        start_process(jobs=[work])
        ledger.request("gone")

        look(0)
        back = start_process(jobs=[gone])
        look(GRACE - 1)
        ledger.do("DELETE FROM rota_processes WHERE id = :id", id=back.id)
        age_releases()
        look(2 * GRACE - 2)

        assert ledger.states("gone") == ["queued"]

    def test_nothing_is_orphaned_while_a_process_does_not_say_what_it_has(self, look, ledger, start_process):
        start_process(jobs=[work])
        start_process()
        ledger.request("gone")

        look(0), look(GRACE)

        assert ledger.states("gone") == ["queued"]

    def test_a_process_that_came_alive_since_anybody_looked_keeps_its_runs(self, connection, ledger, start_process):
        ledger.request("gone")
        start_process(jobs=[gone])

        assert orphans.end(connection, "gone", "unknown") == []
        assert orphans.forget_slots(connection, "gone") is False

    def test_what_is_over_of_a_job_that_is_gone_is_not_read_look_after_look(
        self, orphan_keeper, connection, database, ledger, start_process
    ):
        start_process(jobs=[work])
        ledger.do(
            "INSERT INTO rota_runs (job, queue, state, finished_at) "
            "SELECT 'gone', 'default', 'succeeded', now() FROM generate_series(1, 5000)"
        )
        ledger.do("ANALYZE rota_runs")
        fleet = releases.fleet(connection)
        orphan_keeper.look(connection, fleet, 0)
        waiting = ledger.request("gone")
        orphan_keeper.look(connection, fleet, GRACE)
        assert ledger.run(waiting).state == "orphaned"

        with database.begin() as transaction:
            transaction.exec_driver_sql(PLANS)
            orphan_keeper.look(transaction, fleet, 2 * GRACE)
            assert transaction.exec_driver_sql(ROWS_READ).scalar_one() < 10

    def test_a_look_is_taken_every_few_seconds_only(self, look, ledger, start_process, orphan_keeper):
        start_process(jobs=[work])
        orphan_keeper._jobs.grace_seconds = 0
        look(0)
        ledger.request("gone")

        look(LOOK_SECONDS - 0.1)
        assert ledger.states("gone") == ["queued"]
        look(LOOK_SECONDS)
        assert ledger.states("gone") == ["orphaned"]


class TestJobsThatNobodyHadYet:
    def test_a_request_waits_for_a_job_that_no_release_ever_had(self, look, ledger, start_process, connection):
        start_process(jobs=[work])
        tomorrow = ledger.value("SELECT now() + interval '1 day'")
        ledger.request("gone"), ledger.request("gone", due_at=tomorrow)
        slots.account(connection, {"gone": slots.Watermark("every 1s", tomorrow)})

        look(0), look(GRACE), look(100 * GRACE)

        assert ledger.states("gone") == ["queued", "queued"]
        assert set(slots.watermarks(connection)) == {"gone"}


class TestGrace:
    """The grace is an hour, of which a leader itself must see at most a minute."""

    @pytest.fixture
    def make_keeper(self, make_broker):
        return lambda: OrphanKeeper(registry_of(work), RedisCarrier(make_broker().redis_queues), 3600)

    def test_it_is_counted_from_when_a_process_with_the_job_was_last_alive(
        self, make_keeper, connection, ledger, start_process, ran, age_releases
    ):
        keeper = make_keeper()
        ran(gone)
        start_process(jobs=[work])
        ledger.request("gone")
        age_releases("59 minutes")

        keeper.look(connection, releases.fleet(connection), 0)
        keeper.look(connection, releases.fleet(connection), 3600)
        assert ledger.states("gone") == ["queued"]
        age_releases("1 minute")
        keeper.look(connection, releases.fleet(connection), 3610)
        assert ledger.states("gone") == ["orphaned"]

    def test_a_new_leader_does_not_start_it_again_but_looks_for_a_minute(
        self, make_keeper, connection, ledger, start_process, ran, age_releases
    ):
        ran(gone)
        age_releases("1 day")
        start_process(jobs=[work])
        ledger.request("gone")
        keeper = make_keeper()

        keeper.look(connection, releases.fleet(connection), 0)
        keeper.look(connection, releases.fleet(connection), 59)
        assert ledger.states("gone") == ["queued"]
        keeper.look(connection, releases.fleet(connection), 65)
        assert ledger.states("gone") == ["orphaned"]


class TestAbsence:
    """The only host of a job is down, and no newer release has removed the job."""

    @pytest.fixture(autouse=True)
    def _down(self, start_process, ran, age_releases):
        start_process(jobs=[work])
        age_releases("2 days")
        ran(gone)
        age_releases("1 day")

    def test_its_runs_are_orphaned_and_adopted_by_themselves_when_it_is_back(self, look, ledger, start_process, caplog):
        later = ledger.value("SELECT now() + interval '1 hour'")
        ids = [
            ledger.request("gone", queue="former", exclusive=True),
            ledger.request("gone", slot=later, due_at=later),
            ledger.request("gone", state="retrying", reason="error", attempt=2, due_at=later),
            ledger.request("gone", state="dead", reason="retries", attempt=4, finished_at=later),
        ]
        look(0), look(GRACE)
        assert [(ledger.run(run_id).state, ledger.run(run_id).reason) for run_id in ids] == [("orphaned", "absent")] * 4

        start_process(jobs=[gone], plugin="tests")
        look(2 * GRACE)

        rows = [ledger.run(run_id) for run_id in ids]
        assert [(row.state, row.reason) for row in rows] == [
            ("queued", "adopted"), ("queued", "adopted"), ("retrying", "adopted"), ("dead", "retries")
        ]  # fmt: skip
        assert (rows[0].queue, rows[0].exclusive) == ("default", True)
        assert [row.finished_at is None for row in rows] == [True, True, True, False]
        assert emitted(caplog, "run.readopted") == [RunReadopted("gone", 4)]

    def test_runs_of_a_job_that_was_taken_away_wait_for_a_person(self, look, ledger, start_process):
        taken = ledger.request("gone", state="orphaned", reason="uninstalled", former_state="queued", finished_at="now")
        start_process(jobs=[gone])

        look(0)

        assert ledger.run(taken).state == "orphaned"

    def test_great_numbers_are_adopted_over_several_looks(self, look, ledger, start_process, monkeypatch):
        monkeypatch.setattr(orphans, "BATCH", 2)
        for _ in range(50):
            ledger.request("gone", state="orphaned", reason="absent", former_state="queued", finished_at="now")
        start_process(jobs=[gone])

        look(0)
        assert ledger.states("gone").count("orphaned") == 10
        look(LOOK_SECONDS)
        assert ledger.states("gone") == ["queued"] * 50


class TestReason:
    @pytest.mark.parametrize(
        ("plugins", "expected"),
        [
            ([], "uninstalled"),
            ([Plugin("tests", "", "", is_disabled=True)], "disabled"),
            ([Plugin("tests", "", "", error="ImportError: no")], "broken"),
            ([Plugin("tests", "", "", (work,))], "unknown"),
        ],
    )
    def test_it_is_told_from_what_is_installed_here(self, connection, plugins, expected):
        releases.record(connection, releases.of(registry_of(gone)))
        releases.record(connection, releases.of(registry_of(work)))

        had = releases.last_had(connection, ["gone"])["gone"]

        assert reason(Registry(tuple(plugins)), had) == expected

    def test_a_job_that_no_newer_release_took_away_is_absent(self, connection):
        releases.record(connection, releases.of(registry_of(work)))
        releases.record(connection, releases.of(registry_of(gone)))

        assert reason(Registry(), releases.last_had(connection, ["gone"])["gone"]) == "absent"

    def test_a_release_that_came_long_before_the_job_was_last_seen_took_nothing_away(
        self, connection, ran, age_releases, ledger
    ):
        ran(gone)
        ran(work)
        age_releases("1 day")
        ledger.do("UPDATE rota_releases SET last_seen_at = now() WHERE jsonb_exists(jobs, 'gone')")

        assert not releases.last_had(connection, ["gone"])["gone"].is_taken_away

    def test_nobody_ever_had_the_job(self, connection):
        assert releases.last_had(connection, ["gone"]) == {}


class TestSlots:
    @pytest.mark.usefixtures("gone_before")
    def test_the_time_of_its_absence_is_not_made_up_for(self, look, connection, ledger, start_process, carrier, caplog):
        start_process(jobs=[work])
        old = ledger.value("SELECT now() - interval '10 minutes'")
        slots.account(connection, {"gone-tick": slots.Watermark(str(gone_tick.schedule), old)})

        look(0), look(GRACE)

        assert slots.watermarks(connection) == {}
        assert emitted(caplog, "slot.forgotten") == [SlotForgotten("gone-tick", "unknown")]
        returned = Accountant(registry_of(gone_tick), slots.watermarks(connection))
        returned.account(connection, carrier)
        assert ledger.runs("gone-tick") == []

    def test_an_outage_of_the_whole_service_is(self, look, connection, ledger, start_process, carrier):
        old = ledger.value("SELECT now() - interval '10 minutes'")
        slots.account(connection, {"gone-tick": slots.Watermark(str(gone_tick.schedule), old)})
        start_process(jobs=[work, gone_tick])

        look(0), look(GRACE)
        Accountant(registry_of(gone_tick), slots.watermarks(connection)).account(connection, carrier)

        assert len(ledger.runs("gone-tick")) > 500


class TestRelay:
    def test_runs_of_jobs_that_only_others_have_are_sent_to_their_queue(
        self, connection, ledger, start_process, carrier
    ):
        start_process(jobs=[work])
        start_process(jobs=[gone])
        ledger.request("gone", queue="elsewhere")
        ledger.request("nobodys")

        known = {*registry_of(work).jobs, *releases.fleet(connection).queues_of}
        assert sending.send_due(connection, known, carrier) == 1

        assert [(run.job, run.queue) for run in carrier.runs] == [("gone", "elsewhere")]


class TestFleet:
    def test_it_knows_what_any_of_its_processes_has(self, connection, start_process):
        start_process(jobs=[work])
        start_process(jobs=[work, gone_fast], kind="scheduler")

        fleet = releases.fleet(connection)

        assert [fleet.knows(name) for name in ("work", "gone-fast", "gone")] == [True, True, False]
        assert fleet.queues == {"default", "gone"}

    def test_a_silent_process_is_not_of_it(self, connection, start_process, database):
        start_process(jobs=[gone]).expire(database)

        assert releases.fleet(connection) == Fleet()

    def test_the_same_jobs_are_the_same_release(self, connection, ledger, start_process):
        start_process(jobs=[work, gone])
        start_process(jobs=[gone, work])

        assert ledger.value("SELECT count(*) FROM rota_releases") == 1

    def test_the_newer_of_two_that_are_alive_is_the_last(self, connection, ledger, start_process):
        start_process(jobs=[work])
        start_process(jobs=[gone])
        ledger.do("UPDATE rota_releases SET last_seen_at = date_trunc('minute', now()) + interval '1 second'")

        last = releases.last(connection)

        assert last is not None
        assert set(last.jobs) == {"gone"}


def put(broker, actor, queue="default", **options):
    message = Message(queue_name=queue, actor_name=actor, args=(), kwargs={}, options=options)
    broker.redis_queues.enqueue_many([message])


def keys(client, queue="default"):
    """Return how many messages wait, how many are fetched by any process, and how many are dead letters."""
    fetched = sum(client.scard(key) for key in client.keys(f"dramatiq:__acks__.*.{queue}"))
    return client.llen(f"dramatiq:{queue}"), fetched, client.hlen(f"dramatiq:{queue}.XQ.msgs")


class TestConsumer:
    """Messages for actors that this process does not have."""

    @pytest.fixture
    def client(self, redis_url):
        client = redis.Redis.from_url(redis_url)
        yield client
        client.close()

    @pytest.fixture
    def consume(self, make_broker):
        """Fetch the waiting messages, in a process without actors."""

        def consume(ask_fleet, orphan_seconds=0.0):
            broker = make_broker(ask_fleet=ask_fleet, orphan_seconds=orphan_seconds)
            consumer = broker.consume("default", prefetch=10, timeout=100)
            assert next(consumer) is None
            return broker, consumer

        return consume

    def test_what_another_process_knows_is_put_back_after_a_pause(self, consume, make_broker, client):
        put(make_broker(), "gone", run_id=1)
        put(make_broker(), "gone-fast")
        _, consumer = consume(lambda: Fleet({"gone": frozenset({"default"}), "gone-fast": frozenset({"default"})}))
        next(consumer)

        assert keys(client) == (0, 2, 0)
        assert eventually(lambda: keys(client) == (2, 0, 0), within=PAUSE_SECONDS * 4)

    def test_a_run_that_nobody_knows_is_dropped_since_the_ledger_has_it(self, consume, make_broker, client, caplog):
        caplog.set_level("INFO", "rota")
        put(make_broker(), "gone", run_id=1)
        consume(Fleet, orphan_seconds=GRACE)

        assert eventually(lambda: keys(client) == (0, 0, 0), within=5)
        assert client.hlen("dramatiq:default.msgs") == 0
        assert emitted(caplog, "message.dropped") == [MessageDropped("gone", "default")]

    def test_the_fast_lane_is_set_aside_once_nobody_has_known_it_for_a_while(
        self, consume, make_broker, client, caplog
    ):
        put(make_broker(), "gone-fast")
        _, consumer = consume(Fleet, orphan_seconds=1.5)

        assert eventually(lambda: keys(client) == (1, 0, 0), within=5)
        assert eventually(lambda: next(consumer) or keys(client) == (0, 0, 1), within=10)
        assert emitted(caplog, "message.orphaned") == [MessageOrphaned("gone-fast", "default")]

    def test_without_postgresql_it_is_put_back(self, consume, make_broker, client):
        def away():
            raise OperationalError("SELECT", {}, Exception("away on purpose"))

        put(make_broker(), "gone", run_id=1)
        put(make_broker(), "gone-fast")
        _, consumer = consume(away)
        next(consumer)

        assert eventually(lambda: keys(client) == (2, 0, 0), within=5)

    def test_a_process_that_does_not_say_what_it_has_may_know_it(self, consume, make_broker, client):
        put(make_broker(), "gone-fast")
        consume(lambda: Fleet({}, is_complete=False))

        assert eventually(lambda: keys(client) == (1, 0, 0), within=5)

    def test_what_comes_round_at_once_is_held_as_long_as_any(self, redis_url):
        asked_at, asked_enough = [], threading.Event()
        message = Message("default", "gone", (), {}, {"redis_message_id": "x"})

        def ask_fleet():
            asked_at.append(time.monotonic())
            unknown_actors.add(("default", message))
            if len(asked_at) == 3:
                asked_enough.set()
            return Fleet({"gone": frozenset({"default"})})

        with closing(connect(redis_url)) as client:
            unknown_actors = UnknownActors(Queues(client), ask_fleet)
            unknown_actors.add(("default", message))
            assert asked_enough.wait(10)
            unknown_actors.stop()

        assert min(later - sooner for sooner, later in pairwise(asked_at[:3])) > PAUSE_SECONDS * 0.9

    @pytest.mark.parametrize("is_redis_away", [True, False])
    def test_what_cannot_be_decided_yet_is_said_and_kept(self, redis_url, is_redis_away, caplog):
        """The decision is impossible while Redis is away, and after an error in Rota's own code."""
        message = Message("default", "gone", (), {}, {"redis_message_id": "x"})

        def ask_fleet():
            return Fleet({"gone": frozenset({"default"})}) if is_redis_away else {}["a fault"]

        with closing(connect("redis://127.0.0.1:1" if is_redis_away else redis_url)) as client:
            unknown_actors = UnknownActors(Queues(client), ask_fleet)
            unknown_actors.add(("default", message))
            name = "message.not_requeued" if is_redis_away else "message.undecided"
            told = eventually(lambda: emitted(caplog, name), within=10)[0]
            assert len(unknown_actors._waiting) == 1
            unknown_actors.stop()

        if is_redis_away:
            assert isinstance(told, MessageNotRequeued)
            assert (told.messages, "Connection refused" in told.error) == (1, True)
        else:
            assert told == MessageUndecided(1)
            assert "KeyError: 'a fault'" in caplog.text

    def test_what_is_held_is_put_back_when_the_process_ends(self, consume, make_broker, client):
        put(make_broker(), "gone-fast")
        broker, _ = consume(Fleet)

        broker.close()

        assert keys(client) == (1, 0, 0)


class TestAbandonedQueues:
    """Queues that no live process uses."""

    @pytest.fixture(autouse=True)
    def history(self, ran):
        ran(gone_fast)
        ran(job("gone-fast", queue="old", ledger=False)(lambda run: None))

    @pytest.fixture
    def client(self, redis_url):
        client = redis.Redis.from_url(redis_url)
        yield client
        client.close()

    def test_their_messages_are_dropped_or_set_aside_after_the_grace(
        self, look, make_broker, start_process, client, caplog
    ):
        start_process(jobs=[work])
        broker = make_broker()
        put(broker, "gone", "gone", run_id=1)
        put(broker, "gone-fast", "gone")
        put(broker, "gone-fast", "gone.DQ", eta=0)
        client.rpush("dramatiq:gone", "no-body")
        put(broker, "work", "default", run_id=2)

        look(0)
        assert keys(client, "gone")[0] == 3
        look(GRACE)

        assert keys(client, "gone") == (0, 0, 2)
        assert keys(client, "gone.DQ")[0] == 0
        assert keys(client)[0] == 1
        told = emitted(caplog, "message.cleared")
        assert MessageCleared("gone", "gone", 1, "dropped") in told
        assert MessageCleared("gone", "gone-fast", 2, "orphaned") in told

    def test_what_a_dead_process_had_fetched_of_them_is_found(self, look, make_broker, start_process, client):
        start_process(jobs=[work])
        dead = make_broker()
        put(dead, "gone-fast", "gone")
        dead.do_fetch("gone", 1)
        client.zadd("dramatiq:__heartbeats__", {dead.broker_id: 0})
        put(dead, "gone-fast", "gone")

        look(0), look(GRACE)

        assert keys(client, "gone") == (0, 0, 2)

    def test_a_job_that_has_moved_to_another_queue_has_its_messages_moved(
        self, look, make_broker, start_process, client
    ):
        start_process(jobs=[work, gone_fast])
        put(make_broker(), "gone-fast", "old")

        look(0), look(GRACE)

        assert (keys(client, "old"), keys(client, "gone")) == ((0, 0, 0), (1, 0, 0))

    def test_one_is_found_among_many_keys_in_bounded_steps(self, make_broker, client):
        pipe = client.pipeline()
        for number in range(30_000):
            pipe.set(f"session:{number}", "x")
        pipe.execute()
        queues = make_broker().redis_queues
        queues.enqueue_many([Message("gone", "gone-fast", (), {}, {})])
        abandoned = AbandonedQueues(queues)

        looks = [abandoned.with_messages() for _ in range(4)]

        assert looks[-1] == {"gone"}

    def test_none_is_touched_while_a_process_does_not_say_what_it_has(self, look, make_broker, start_process, client):
        start_process(jobs=[work])
        start_process()
        put(make_broker(), "gone-fast", "gone")

        look(0), look(GRACE)

        assert keys(client, "gone") == (1, 0, 0)

    def test_a_run_whose_job_has_moved_is_sent_to_its_present_queue(
        self, look, make_broker, start_process, client, ledger, caplog
    ):
        start_process(jobs=[work])
        moved, other = ledger.request("work", queue="old", sent_at="now"), ledger.request("gone", queue="old")
        put(make_broker(), "work", "old", run_id=moved)

        look(0), look(GRACE)

        assert (ledger.run(moved).queue, ledger.run(moved).sent_at) == ("default", None)
        assert ledger.run(other).queue == "old"
        assert emitted(caplog, "run.moved") == [RunMoved("old", 1)]
        assert client.exists("dramatiq:old", "dramatiq:old.msgs") == 0

    def test_what_another_service_has_on_the_same_redis_is_none_of_ours(self, look, make_broker, start_process, client):
        start_process(jobs=[work])
        put(make_broker(), "theirs", "their-queue")

        look(0), look(GRACE)

        assert keys(client, "their-queue") == (1, 0, 0)

    def test_a_key_that_only_has_the_name_of_a_queue_keeps_no_other_from_being_cleared(
        self, look, make_broker, start_process, client, caplog
    ):
        start_process(jobs=[work])
        client.set("dramatiq:gone", "no list")
        client.hset("dramatiq:gone.msgs", "x", "y")
        put(make_broker(), "gone-fast", "old")

        look(0), look(GRACE)

        assert keys(client, "old") == (0, 0, 1)
        (told,) = emitted(caplog, "dispatcher.queue_not_cleared")
        assert isinstance(told, DispatcherQueueNotCleared)
        assert (told.queue, "WRONGTYPE" in told.error) == ("gone", True)

    def test_without_redis_they_are_looked_for_later(self, connection, start_process, caplog):
        start_process(jobs=[work])
        with closing(connect("redis://127.0.0.1:1")) as away:
            keeper = OrphanKeeper(registry_of(work), RedisCarrier(Queues(away)), GRACE)
            keeper.look(connection, releases.fleet(connection), 0)

        (told,) = emitted(caplog, "dispatcher.queues_not_searched")
        assert isinstance(told, DispatcherQueuesNotSearched)
        assert "Connection refused" in told.error


@pytest.mark.usefixtures("gone_before")
class TestAdoption:
    def test_each_is_what_it_was_and_a_late_slot_is_not_missed_again(self, look, connection, ledger, start_process):
        start_process(jobs=[work])
        old = ledger.value("SELECT now() - interval '1 day'")
        queued, slot = ledger.request("gone", queue="old"), ledger.request("gone", slot=old)
        dead = ledger.request("gone", state="dead", reason="retries", finished_at=old)
        look(0), look(GRACE)

        assert sorted(orphans.adopt(connection, gone).values()) == ["dead", "queued", "retrying"]

        assert slots.miss(connection, [gone_tick], timedelta(seconds=30).total_seconds()) == []
        rows = [ledger.run(run_id) for run_id in (queued, slot, dead)]
        assert [(row.state, row.reason, row.former_state) for row in rows] == [
            ("queued", "adopted", None), ("retrying", "adopted", None), ("dead", "retries", None)
        ]  # fmt: skip
        assert rows[0].queue == "default"

    def test_it_is_done_once_and_in_batches(self, connection, ledger):
        for _ in range(5):
            ledger.request("gone", state="orphaned", former_state="queued", finished_at="now")

        assert [len(orphans.adopt(connection, gone, batch=2)) for _ in range(4)] == [2, 2, 1, 0]
