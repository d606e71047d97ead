"""Facts about plain Dramatiq and periodiq that explain parts of Rota, and Rota's own behaviour in the same cases.

Fact 8 needs a process that dies, and is in tests/crash/test_facts_of_death.py; fact 9 is in
tests/crash/test_dead_workers.py. If the test of a plain fact fails, the fact is no longer true, and the part of Rota
that it explains may be removed.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from queue import Queue
from statistics import median

import dramatiq
import pendulum
import periodiq
import pytest
import redis
from dramatiq.broker import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, Retries
from dramatiq.worker import Worker
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from core import cron, every, job
from core import database as databases
from core.database import normalise_url
from core.dispatcher.loop import Dispatcher
from core.embedded import EmbeddedRedis
from core.errors import DeclarationError
from core.ledger.carrier import OutgoingRun
from core.scheduling.periodic import PeriodicSchedule
from core.testing import FrozenClock, Member, registered
from core.worker.executor import Executor
from tests.support.eventually import elapse, eventually

SATURDAY = datetime(2026, 3, 7, 12, tzinfo=UTC)
FAST = timedelta(0)


@contextmanager
def working(broker: Broker) -> Iterator[Worker]:
    """Run a plain worker, with threads in this process."""
    worker = Worker(broker, worker_threads=2, worker_timeout=1000)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(timeout=5_000)
        broker.close()


@pytest.fixture
def dispatch(database: Engine) -> Iterator[Callable[..., None]]:
    """Yield a function that starts a dispatcher for a service, with short intervals."""
    started: list[Dispatcher] = []

    def start(service) -> None:
        spans = {"every_seconds": 0.1, "resend_seconds": 0.5, "max_crashes": 3, "orphan_seconds": 60}
        started.append(Dispatcher(database, service.registry, service.carrier, **spans))
        started[-1].start()

    yield start
    for dispatcher in started:
        dispatcher.stop()


class TestFact1AnErrorBeforeTheMessage:
    """The checks before a job cannot be made. Plain Dramatiq runs the job anyway."""

    APPLICATION = "rota:fact-1"

    @pytest.fixture
    def executor(self, database: Engine, postgres_url: str) -> Iterator[Executor]:
        engine = databases.connect(postgres_url, application=self.APPLICATION)
        with registered(database) as process_id:
            yield Executor(engine, Member(process_id), "test:1")
        engine.dispose()

    @contextmanager
    def database_away(self, url: str) -> Iterator[None]:
        """Refuse all new connections, and close the connections of processes that claim leases."""
        name = make_url(url).database
        engine = databases.connect(make_url(url).set(database="postgres").render_as_string(hide_password=False))
        with databases.autocommit(engine) as connection:
            connection.exec_driver_sql(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            connection.exec_driver_sql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{self.APPLICATION}'"
            )
            try:
                yield
            finally:
                connection.exec_driver_sql(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        engine.dispose()

    def test_plain_the_actor_runs(self):
        class LockStoreIsAway(Middleware):
            def before_process_message(self, broker, message):
                raise ConnectionError("cannot ask for the lock")

        ran = []
        broker = StubBroker(middleware=[LockStoreIsAway()])
        actor = dramatiq.actor(lambda: ran.append("unlocked"), broker=broker, actor_name="work")

        with working(broker):
            actor.send()
            broker.join(actor.queue_name, timeout=5_000)

        assert ran == ["unlocked"]

    def test_rota_the_job_does_not_run_until_its_lease_can_be_had(self, serve, ledger, postgres_url, dispatch, caplog):
        ran = []
        service = serve(job("work")(lambda run: ran.append(run.id)))
        service.work()
        run_id = ledger.request()

        with self.database_away(postgres_url):
            service.carrier.send([OutgoingRun(run_id, "work", "default")])
            eventually(lambda: "run.not_claimed" in caplog.text, within=10)
            assert ran == []
        dispatch(service)

        eventually(lambda: ledger.states("work") == ["succeeded"], within=10)
        assert ran == [run_id]


class TestFact2AnErrorAfterTheMessage:
    """Plain Dramatiq acknowledges a message although the commit in an after-hook has failed."""

    def test_plain_the_message_is_acknowledged(self):
        class CommitFails(Middleware):
            def after_process_message(self, broker, message, *, result=None, exception=None):
                raise RuntimeError("the commit failed")

        attempts = []
        broker = StubBroker(middleware=[Retries(min_backoff=1), CommitFails()])
        actor = dramatiq.actor(lambda: attempts.append(1), broker=broker, actor_name="work", max_retries=3)

        with working(broker):
            actor.send()
            broker.join(actor.queue_name, timeout=5_000)

        assert (attempts, broker.dead_letters) == ([1], [])

    def test_rota_a_commit_that_fails_is_a_failed_attempt(self, run_job, ledger):
        ledger.do("CREATE TABLE fact_2 (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

        @job("work", retry_delay=FAST)
        def work(run):
            values = "(1), (1)" if run.attempt == 1 else "(1)"  # PostgreSQL refuses the first COMMIT
            run.session.connection().exec_driver_sql(f"INSERT INTO fact_2 VALUES {values}")

        failed = run_job(work)
        run_job.executor.execute(work, failed.id)

        assert (failed.state, failed.failures) == ("retrying", 1)
        assert "fact_2_number_key" in failed.error
        assert run_job.row(failed.id).state == "succeeded"
        assert ledger.value("SELECT count(*) FROM fact_2") == 1


class TestFact3RedisIsAwayWhenARetryIsDue:
    """Plain Dramatiq swallows the error of a retry that cannot be sent, and acknowledges the message when Redis is
    back.
    """

    @pytest.fixture
    def own_redis(self, servers_folder, tmp_path) -> Iterator[EmbeddedRedis]:
        server = EmbeddedRedis(servers_folder / tmp_path.name)
        server.start()
        yield server
        server.stop()

    @pytest.fixture
    def redis_url(self, own_redis) -> str:
        return own_redis.url

    @pytest.fixture
    def attempts(self) -> list[int]:
        return []

    @pytest.fixture
    def take_redis_away(self, own_redis, attempts) -> Iterator[Callable[[], None]]:
        """Stop Redis and fail, at the first attempt. Redis is back a moment later."""
        gone = threading.Event()

        def fail_at_first() -> None:
            attempts.append(len(attempts) + 1)
            if len(attempts) == 1:
                own_redis.kill()
                gone.set()
                raise RuntimeError("failed on purpose")

        def bring_back() -> None:
            assert gone.wait(20)
            elapse(1)
            own_redis.start()

        helper = threading.Thread(target=bring_back)
        helper.start()
        yield fail_at_first
        helper.join(20)

    def test_plain_the_retry_is_lost(self, own_redis, take_redis_away, attempts):
        broker = RedisBroker(url=own_redis.url, middleware=[Retries(min_backoff=100, max_backoff=200)])
        actor = dramatiq.actor(take_redis_away, broker=broker, actor_name="work", max_retries=3)

        def messages() -> int | None:
            """Return the number of waiting, fetched, delayed and dead messages, or None while Redis is away."""
            try:
                return sum(broker.client.hlen(f"dramatiq:default{suffix}.msgs") for suffix in ("", ".DQ", ".XQ"))
            except redis.RedisError:
                return None

        actor.send()
        assert messages() == 1
        with working(broker):
            eventually(lambda: messages() == 0, within=30)

        assert attempts == [1]

    def test_rota_a_run_of_the_ledger_is_tried_again(self, serve, dispatch, ledger, take_redis_away, attempts):
        service = serve(job("work", retry_delay=FAST)(lambda run: take_redis_away()))
        service.work()
        dispatch(service)
        ledger.request()

        eventually(lambda: ledger.states("work") == ["succeeded"], within=30)
        assert attempts == [1, 2]

    def test_rota_a_message_of_the_fast_lane_is_tried_again(self, serve, take_redis_away, attempts):
        service = serve(job("work", ledger=False, retry_delay=FAST)(lambda run: take_redis_away()))
        service.work()
        service.broker.get_actor("work").send()

        eventually(lambda: attempts == [1, 2], within=30)


class TestFact4RetriesOfOldSlots:
    """periodiq's middleware drops a retry if its slot is older than ``skip_delay``."""

    def test_plain_three_retries_are_one_attempt(self):
        attempts = []

        def work():
            attempts.append(1)
            raise RuntimeError("failed on purpose")

        # Instead of 30 s, and of 15 s to 30 s.
        broker = StubBroker(middleware=[periodiq.PeriodiqMiddleware(skip_delay=0.1), Retries(min_backoff=400)])
        broker.add_middleware(ScheduledAt())
        actor = dramatiq.actor(
            work, broker=broker, actor_name="work", max_retries=3, periodic=periodiq.cron("* * * * *")
        )  # fmt: skip

        with working(broker):
            actor.send_with_options(scheduled_at=str(pendulum.now()))
            broker.join(actor.queue_name, timeout=10_000)

        assert (attempts, broker.dead_letters) == ([1], [])

    def test_rota_all_attempts_are_made(self, serve, dispatch, ledger):
        def work(run):
            raise RuntimeError("failed on purpose")

        service = serve(job("work", schedule=every(hours=1), max_retries=3, retry_delay=FAST)(work))
        ledger.request(slot=datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1))
        service.work()
        dispatch(service)

        (run,) = eventually(lambda: [run for run in ledger.runs("work") if run.state == "dead"], within=15)
        assert (run.attempt, run.failures, run.reason) == (4, 4, "retries")


class ScheduledAt(Middleware):
    """Declares the option ``scheduled_at``, which Dramatiq does not know."""

    actor_options = frozenset({"scheduled_at"})


class TestFact5Cron:
    """The errors of periodiq's ``CronSpec``."""

    @pytest.mark.parametrize("sunday", ["0 0 * * 0", "0 0 * * sun", "@weekly"])
    def test_sunday(self, sunday):
        plain = periodiq.cron(sunday)
        assert not any(plain.validate(pendulum.datetime(2026, 3, day)) for day in range(1, 32))

        assert cron(sunday).next_after(SATURDAY) == datetime(2026, 3, 8, tzinfo=UTC)

    def test_a_minute_that_there_is_not(self):
        assert periodiq.cron("61 * * * *").minute == [61]

        with pytest.raises(DeclarationError, match="61"):
            cron("61 * * * *")

    def test_a_time_that_comes_twice_when_clocks_go_back(self):
        plain = periodiq.cron("30 1 * * *")
        quarters = [pendulum.datetime(2026, 10, 25).add(minutes=15 * n) for n in range(96)]
        fired = [at for at in quarters if plain.validate(at.in_timezone("Europe/London"))]
        assert len(fired) == 2

        slots = cron("30 1 * * *", tz="Europe/London").between(quarters[0], quarters[-1])
        assert list(slots) == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]

    def test_the_day_on_which_clocks_go_forward(self):
        plain = periodiq.cron("0 3 * * *")
        woken_at = plain.next_valid_date(pendulum.datetime(2026, 3, 28, 12, tz="Europe/London"))
        assert (woken_at.day, woken_at.hour) == (29, 4)
        assert not plain.validate(woken_at)

        slot = cron("0 3 * * *", tz="Europe/London").next_after(datetime(2026, 3, 28, 12, tzinfo=UTC))
        assert slot == datetime(2026, 3, 29, 2, tzinfo=UTC)

    def test_waking_twice_in_a_minute(self):
        plain = periodiq.cron("30 3 * * *")
        assert plain.validate(pendulum.datetime(2026, 3, 1, 3, 30, 0))
        assert plain.validate(pendulum.datetime(2026, 3, 1, 3, 30, 40))

        clock = FrozenClock(datetime(2026, 3, 1, 3, 29, 50, tzinfo=UTC))
        ours = PeriodicSchedule(cron("30 3 * * *"), clock)
        woken = [ours.validate(clock.advance(seconds=seconds)) for seconds in (0, 10, 40)]
        assert woken == [False, True, False]


class TestFact6Delays:
    """Dramatiq's back-off has jitter, and a delayed message is in the memory of the worker that fetched it."""

    def test_plain_a_delay_is_anything_from_a_half_to_the_whole(self):
        class Delays(Middleware):
            def before_enqueue(self, broker, message, delay):
                if delay is not None:
                    delays.append(delay)

        def work():
            raise RuntimeError("failed on purpose")

        delays: list[int] = []
        broker = StubBroker(middleware=[Retries(min_backoff=30_000, max_backoff=30_000), Delays()])
        actor = dramatiq.actor(work, broker=broker, actor_name="work")
        with working(broker):
            for _ in range(30):
                actor.send()
            eventually(lambda: len(delays) == 30, within=10)

        assert min(delays) < 25_000
        assert len(set(delays)) > 5

    def test_rota_a_delay_is_exact(self, run_job, ledger):
        def work(run):
            raise RuntimeError("failed on purpose")

        before = ledger.value("SELECT clock_timestamp()")
        row = run_job(job("work", retry_delay=timedelta(seconds=30))(work))
        after = ledger.value("SELECT clock_timestamp()")

        assert before <= row.due_at - timedelta(seconds=30) <= after

    def test_plain_a_delayed_message_is_held_by_a_worker(self, redis_url):
        broker = RedisBroker(url=redis_url, middleware=[])
        actor = dramatiq.actor(lambda: None, broker=broker, actor_name="work")
        with working(broker):
            actor.send_with_options(delay=60_000)
            eventually(lambda: broker.client.keys("dramatiq:__acks__.*.default.DQ"), within=10)
            waiting = broker.client.llen("dramatiq:default.DQ")

        assert waiting == 0

    def test_rota_a_delayed_run_is_held_by_the_ledger(self, serve, ledger):
        service = serve(job("work")(lambda run: None))
        service.work()
        service.broker.get_actor("work").send_with_options(delay=60_000)

        assert service.redis.keys("dramatiq:default*") == []
        (run,) = ledger.runs("work")
        assert (run.state, run.sent_at) == ("queued", None)


@pytest.mark.slow
def test_fact_7_an_idle_worker_is_woken_rather_than_polling(serve, redis_url):
    """A plain worker polls, with a back-off of up to a second."""
    woken: Queue[float] = Queue()
    plain = RedisBroker(url=redis_url, namespace="plain", middleware=[])
    actor = dramatiq.actor(lambda: woken.put(time.perf_counter()), broker=plain, actor_name="plain")
    service = serve(
        job("fast", ledger=False)(lambda run: woken.put(time.perf_counter())),
        job("ledger", overlap="allow")(lambda run: woken.put(time.perf_counter())),
    )
    service.work(poll_ms=1000)
    senders = {"plain": actor, **{name: service.broker.get_actor(name) for name in ("fast", "ledger")}}
    latencies: dict[str, list[float]] = {name: [] for name in senders}

    with working(plain):
        for _ in range(8):
            elapse(1.6)  # long enough for the back-off to grow
            for name, sender in senders.items():
                sent_at = time.perf_counter()
                sender.send()
                latencies[name].append(woken.get(timeout=5) - sent_at)

    medians = {name: median(values) for name, values in latencies.items()}
    assert medians["fast"] < medians["plain"] / 3, medians
    assert medians["ledger"] < medians["plain"] / 3, medians


def test_fact_10_a_bare_url_means_psycopg2():
    """SQLAlchemy 2.1 uses psycopg 3 for such a URL. SQLAlchemy 2.0 uses psycopg2, as Rota does."""
    url = "postgresql://rota:secret@db/rota"

    assert make_url(url).get_driver_name() in {"psycopg", "psycopg2"}
    assert normalise_url(url).get_driver_name() == "psycopg2"
    assert normalise_url(url).password == "secret"
