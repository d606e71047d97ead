"""Servers that can be reached but cannot be used: ``rota check`` shows a remedy, and processes refuse to start."""

import os
import signal
from contextlib import ExitStack

import pytest
import redis
from sqlalchemy import make_url, text

from core import database as databases
from core import job, settings
from core.embedded import EmbeddedPostgres
from core.errors import UnfitServers
from core.ledger import identity
from core.operations import connections, fitness, health, postgres_fitness
from core.operations.health import Surroundings
from core.schema import upgrade
from core.testing import registry_of
from core.transport.redis import ownership, probe
from core.worker import fitness as worker_fitness
from core.worker.fitness import Fitness
from tests.support.emitted import emitted
from tests.support.eventually import eventually
from tests.support.other_databases import encoded
from tests.support.standby import Standby

READ_ONLY = "default_transaction_read_only"
EURO = "5 \u20ac"
ANOTHER = "1/2/another"


@job("close-day", queue="billing")
def close_day(run):
    pass


@pytest.fixture
def look(use_jobs, environment, redis_url):
    """Return the lines of ``rota check`` by name, for a URL of PostgreSQL."""
    registry = use_jobs(close_day)

    def look(url, **asked):
        around = Surroundings(
            {**os.environ, "DATABASE_URL": url, "REDIS_URL": redis_url},
            "its own",
            lambda configured: connections.ledger(configured, "rota-tests", 5),
            "see that it runs",
        )
        found = health.everything(registry, around, **{"live": False, "here": None, **asked})
        return {answer.name: answer for answer in found}

    return look


@pytest.fixture
def connect():
    """Yield a function that makes engines."""
    made = []

    def connect(url):
        made.append(databases.connect(url))
        return made[-1]

    yield connect
    for engine in made:
        databases.dispose(engine)


@pytest.fixture
def client(redis_url):
    """Return the test's own client of Redis."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def watching(redis_url):
    """Yield a function that makes the thread that checks the servers. It checks Redis again at once."""
    made = []

    def watching(engine):
        made.append(Fitness(engine, probe(redis_url)))
        return made[-1]

    yield watching
    for each in made:
        each.stop()
        each.join(5)


@pytest.fixture
def standby(servers_folder, tmp_path):
    """Yield the URL of a standby, whose primary is a PostgreSQL of its own."""
    primary = EmbeddedPostgres(servers_folder / tmp_path.name)
    server = Standby(servers_folder / f"{tmp_path.name}-standby", primary)
    with ExitStack() as stack:
        for each in (primary, server):
            stack.callback(each.stop)
            each.start()
        yield server


@pytest.fixture
def own_database(database):
    """Yield the URL of a database that the test may change, and the name of the database."""
    with encoded(database, "UTF8") as url:
        yield url, make_url(url).database


def alter(url, statement):
    engine = databases.connect(url)
    with databases.autocommit(engine) as connection:
        connection.exec_driver_sql(statement)
    databases.dispose(engine)


def given(url, **changed):
    """Return settings with the PostgreSQL of ``url``."""
    return settings.load({**os.environ, "DATABASE_URL": url, **changed})


def url_of(engine, **query):
    return make_url(engine.url).update_query_dict(query).render_as_string(hide_password=False)


def test_fit_servers_are_said_to_be_so_and_nothing_refuses_them(look, database, postgres_url):
    found = look(postgres_url)

    assert [answer for answer in found.values() if answer.outcome == "wrong"] == []
    assert found["PostgreSQL encoding"].found == "UTF8"
    assert {found[f"PostgreSQL {name}"].outcome for name in ("encoding", "writes", "pooling")} == {"ok"}
    fitness.refuse_unfit(given(postgres_url))


class TestEncoding:
    @pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
    def test_a_database_that_cannot_hold_every_text_is_refused(self, look, database, encoding):
        with encoded(database, encoding) as url:
            found = look(url)["PostgreSQL encoding"]

            said = f"the database has the encoding {encoding}; it must be UTF8"
            assert (found.outcome, found.found) == ("wrong", said)
            assert "CREATE DATABASE … ENCODING 'UTF8'" in found.advice
            with pytest.raises(UnfitServers, match=f"{said}: make another database"):
                fitness.refuse_unfit(given(url))

    @pytest.mark.parametrize("query", [{}, {"client_encoding": "latin1"}, {"options": "-cclient_encoding=latin1"}])
    def test_texts_travel_as_utf_8_whatever_the_environment_or_the_url_says(
        self, database, connect, monkeypatch, query
    ):
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")

        with connect(url_of(database, **query)).connect() as connection:
            assert connection.execute(text("SELECT :text || ''"), {"text": EURO}).scalar_one() == EURO


class TestWrites:
    def test_a_database_that_is_read_only_by_default_is_wrong_and_waited_for(self, look, own_database):
        url, name = own_database
        alter(url, f"ALTER DATABASE {name} SET {READ_ONLY} = on")

        found = look(url)["PostgreSQL writes"]

        assert (found.outcome, found.found) == ("wrong", f"{READ_ONLY} is on (source: database)")
        assert found.advice == f"ALTER DATABASE … RESET {READ_ONLY}"
        assert look(url, purpose="looking")["PostgreSQL writes"].outcome == "info"
        fitness.refuse_unfit(given(url))

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            ({"options": f"-c{READ_ONLY}=on"}, r"is on \(source: client\): remove it from the options of DATABASE_URL"),
            ({"target_session_attrs": "prefer-standby"}, "target_session_attrs=prefer-standby chooses a server"),
        ],
    )
    def test_a_url_that_asks_for_no_writes_is_refused(self, database, query, said):
        with pytest.raises(UnfitServers, match=said):
            fitness.refuse_unfit(given(url_of(database, **query)))

    def test_a_standby_is_wrong_for_working_and_waited_for(self, look, standby):
        found = look(standby.url)["PostgreSQL writes"]

        assert (found.outcome, found.found) == ("wrong", "the server is a standby, which refuses writes")
        assert "target_session_attrs=read-write" in found.advice
        fitness.refuse_unfit(given(standby.url))


def test_another_isolation_by_default_is_told(look, own_database):
    url, name = own_database
    assert "PostgreSQL isolation" not in look(url)
    alter(url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")

    found = look(url)["PostgreSQL isolation"]

    assert found.outcome == "info"
    assert found.found == "serializable by default; Rota's transactions and jobs still use read committed"


class TestOptions:
    @pytest.mark.parametrize(
        "query",
        [{"sslmode": "sometimes"}, {"options": "-cno_such_setting=1"}, {"options": "-cwork_mem=much"}],
        ids=str,
    )
    def test_options_that_cannot_work_are_refused(self, look, database, query):
        url = url_of(database, **query)

        assert look(url)["PostgreSQL"].advice == "mend the options of DATABASE_URL, and PGOPTIONS if it is set"
        with pytest.raises(UnfitServers, match="mend the options of DATABASE_URL"):
            fitness.refuse_unfit(given(url))

    def test_a_server_that_is_away_is_not_refused(self, environment, connect):
        away = "postgresql://rota@127.0.0.1:1/rota"

        fitness.refuse_unfit(given(away))

        with pytest.raises(databases.DATABASE_AWAY):
            fitness.of_postgresql(connect(away))


class TestIdentity:
    def test_every_database_and_every_schema_has_its_own(self, database, connect):
        with encoded(database, "UTF8") as url:
            list(upgrade.upgrade(connect(url), registry_of()))
            own, again, other = map(fitness.ledger_of, (database, connect(url_of(database)), connect(url)))

        assert own == again
        assert len({own, other, self.in_schema(database)}) == 3

    @staticmethod
    def in_schema(engine):
        with engine.connect() as connection:  # all of it is rolled back
            connection.exec_driver_sql("CREATE SCHEMA other; SET LOCAL search_path = other; CREATE TABLE rota_runs ()")
            return identity.of(connection)

    def test_without_a_ledger_or_the_right_to_ask_there_is_none(self, database, connect):
        with encoded(database, "UTF8") as url:
            assert fitness.ledger_of(connect(url)) is None

        with database.connect() as connection:  # all of it is rolled back
            connection.exec_driver_sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
            connection.exec_driver_sql("CREATE ROLE somebody; SET LOCAL ROLE somebody")
            assert identity.of(connection) is None


class TestRedis:
    def test_the_redis_of_another_ledger_is_wrong_and_refused(self, look, client, database, postgres_url):
        client.set(ownership.KEY, ANOTHER)

        found = look(postgres_url)["ledger of Redis"]

        assert (found.outcome, ANOTHER in found.found) == ("wrong", True)
        assert "give each service a Redis of its own" in found.advice
        assert f"redis-cli DEL {ownership.KEY}" in found.advice
        with pytest.raises(UnfitServers, match=f"messages of the ledger {ANOTHER}; this ledger is"):
            fitness.refuse_unfit(given(postgres_url))
        fitness.refuse_unfit(given(postgres_url, SCHEDULER_MODE="local", REDIS_URL=""))

    def test_a_check_takes_nothing_and_a_worker_makes_redis_its_ledgers(
        self, look, client, database, postgres_url, watching
    ):
        before = look(postgres_url)["ledger of Redis"]
        assert client.get(ownership.KEY) is None

        watching(database).refuse_unfit()

        assert client.get(ownership.KEY).decode() == fitness.ledger_of(database)
        assert (before.outcome, look(postgres_url)["ledger of Redis"].found) == ("ok", "this one")

    def test_a_worker_does_not_start_on_the_redis_of_another(self, client, database, watching):
        client.set(ownership.KEY, ANOTHER)

        with pytest.raises(SystemExit, match="give each service a Redis of its own"):
            watching(database).refuse_unfit()

        assert client.get(ownership.KEY).decode() == ANOTHER

    def test_a_wiped_redis_gets_the_key_again_and_one_that_is_anothers_now_ends_the_process(
        self, client, database, watching, monkeypatch, caplog
    ):
        monkeypatch.setattr(worker_fitness, "REDIS_AGAIN_SECONDS", 0.05)
        asked_to_stop = []
        former = signal.signal(signal.SIGTERM, lambda number, _frame: asked_to_stop.append(number))
        try:
            watching(database).refuse_unfit()
            client.flushall()
            eventually(lambda: client.get(ownership.KEY), within=5)
            assert not asked_to_stop

            client.set(ownership.KEY, ANOTHER)

            assert eventually(lambda: asked_to_stop, within=5) == [signal.SIGTERM]
            (event,) = emitted(caplog, "process.unfit")
            assert ANOTHER in event.problems
        finally:
            signal.signal(signal.SIGTERM, former)


def test_a_direct_connection_keeps_its_session(database):
    with database.connect() as connection:
        assert postgres_fitness.pooling(connection, database).outcome == "ok"
