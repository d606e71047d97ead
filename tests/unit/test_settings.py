"""Settings that are read from the environment, and settings that are refused."""

import pytest
from pydantic import ValidationError

from core import settings
from core.errors import SettingsError

SECRET = "hunter2"
GOOD = {"DATABASE_URL": f"postgresql://rota:{SECRET}@db/rota", "REDIS_URL": f"redis://:{SECRET}@cache:6379/0"}


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings.load(environ)
    return str(caught.value)


def problems(**environ: str) -> list[str]:
    """Return the lines of the error after the first line. URLs that are not given are valid."""
    return [line.strip() for line in refusal(**{**GOOD, **environ}).splitlines()[1:]]


# Accepted settings


def test_the_two_urls_are_enough():
    found = settings.load(GOOD)

    assert found.database_url.get_secret_value() == GOOD["DATABASE_URL"]
    assert found.redis_url.get_secret_value() == GOOD["REDIS_URL"]


def test_every_default_is_a_value_that_would_be_accepted():
    defaults = settings.load(GOOD)
    given = {
        str(field.validation_alias): str(field.default)
        for name, field in settings.Settings.model_fields.items()
        if not field.is_required() and field.default is not None
    }

    assert settings.load({**GOOD, **given}) == defaults


@pytest.mark.parametrize("mode", ["distributed", "auto"])
def test_without_a_redis_only_local_mode_is_possible(mode):
    without = {name: value for name, value in GOOD.items() if name != "REDIS_URL"}

    with pytest.raises(SettingsError, match=r"REDIS_URL is not set.*SCHEDULER_MODE=local"):
        settings.load({**without, "SCHEDULER_MODE": mode})

    assert settings.load({**without, "SCHEDULER_MODE": "local"}).redis_url is None


def test_a_mode_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(SettingsError, match=r"SCHEDULER_MODE .*'distributed', 'local' or 'auto'"):
        settings.load({**GOOD, "SCHEDULER_MODE": "lokal"})


def test_defaults_are_those_of_the_documentation():
    found = settings.load(GOOD)

    assert (found.lease_seconds, found.heartbeat_seconds, found.max_crashes) == (15, 3, 3)
    assert (found.log_format, found.log_level, found.strict_plugins) == ("auto", "INFO", False)
    assert (found.dispatch_seconds, found.retention_days, found.metrics_port) == (1, 30, 9191)


def test_an_empty_string_is_as_good_as_unset():
    emptied = dict.fromkeys(settings.names(), "")

    assert settings.load({**emptied, **GOOD}) == settings.load(GOOD)
    assert "DATABASE_URL is not set" in refusal(**emptied)


def test_other_variables_are_nobodys_business():
    assert settings.load({**GOOD, "PATH": "/bin", "ROTATE": "1", "rota_x": "1"}) == settings.load(GOOD)


def test_every_setting_has_a_sentence_and_a_name():
    for name, sentence in settings.names().items():
        assert name in {"DATABASE_URL", "REDIS_URL", "SCHEDULER_MODE"} or name.startswith("ROTA_")
        assert sentence.endswith("."), name
        assert len(sentence) > 20, name


def test_numbers_in_seconds_and_days_say_so():
    for name, sentence in settings.names().items():
        for unit in ("seconds", "days"):
            if name.endswith(f"_{unit.upper()}"):
                assert unit in sentence, name


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        settings.load(GOOD).log_level = "DEBUG"


def test_secrets_are_not_in_the_representation():
    found = settings.load(GOOD)

    assert SECRET not in repr(found)
    assert SECRET not in str(found.model_dump())


def test_the_process_reads_its_environment_once(monkeypatch):
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    settings.current.cache_clear()

    first = settings.current()
    monkeypatch.setenv("DATABASE_URL", "nonsense")

    assert settings.current() is first
    settings.current.cache_clear()


# Refused settings


def test_missing_urls_are_both_named_with_an_example():
    message = refusal()

    assert "DATABASE_URL is not set; expected postgresql://user:password@host:5432/name" in message
    assert "REDIS_URL is not set; expected redis://host:6379/0" in message


def test_everything_wrong_is_listed_at_once_one_to_a_line():
    found = problems(
        DATABASE_URL="nonsense",
        REDIS_URL="http://cache",
        ROTA_LOG_LEVEL="LOUD",
        ROTA_METRICS_PORT="70000",
        ROTA_LEASE_SECONDS="3",
        ROTA_LEESE_SECONDS="3",
    )

    named = {line.split()[0] for line in found}
    assert named == {
        "DATABASE_URL",
        "REDIS_URL",
        "ROTA_LOG_LEVEL",
        "ROTA_METRICS_PORT",
        "ROTA_HEARTBEAT_SECONDS",
        "ROTA_LEESE_SECONDS",
    }
    assert len(found) == 6


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (SECRET, "is not a URL"),
        (f"rota:{SECRET}@db/rota", "is not a URL"),
        (f"postgresql://rota:{SECRET}@db:port/rota", "is not a URL"),
        (f"postgresql://rota:{SECRET}@db:{SECRET}/rota", "is not a URL"),
        (f" postgresql://rota:{SECRET}@db/rota", "is not a URL"),
        (f"mysql://rota:{SECRET}@db/rota", "starts with mysql://"),
        (f"postgresql+psycopg://rota:{SECRET}@db/rota", "starts with postgresql+psycopg://"),
        (f"postgresql+asyncpg://rota:{SECRET}@db/rota", "starts with postgresql+asyncpg://"),
        (f"sqlite:///{SECRET}", "starts with sqlite://"),
        (f"postgresql://rota:{SECRET}@db", "names no database"),
        (f"postgresql://rota:{SECRET}@db/", "names no database"),
        (f"postgresql://rota:{SECRET}@db:99999/rota", "has an invalid port"),
        (f"postgresql://rota:{SECRET}@db:0/rota", "has an invalid port"),
    ],
)
def test_a_wrong_database_url_is_refused_without_repeating_it(url, problem):
    message = refusal(**{**GOOD, "DATABASE_URL": url})

    assert f"DATABASE_URL {problem}" in message
    assert "expected postgresql://user:password@host:5432/name" in message
    assert SECRET not in message


def test_an_option_that_libpq_does_not_know_is_refused_by_its_name():
    message = refusal(
        **{**GOOD, "DATABASE_URL": f"postgresql://rota:{SECRET}@db/rota?sslmode=require&ssl_cert={SECRET}"}
    )

    assert "DATABASE_URL has the option 'ssl_cert', which libpq does not know" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "url",
    ["postgresql://db/rota", "postgres://db/rota", "postgresql+psycopg2://u:p@db:5433/rota", "postgresql:///rota"],
)
def test_each_way_of_writing_a_database_url_is_accepted(url):
    assert settings.load({**GOOD, "DATABASE_URL": url}).database_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"http://:{SECRET}@cache",
        f"cache:6379/{SECRET}",
        f"redis:{SECRET}@cache",
        f"redis://:{SECRET}@cache:port/0",
        f"redis://:{SECRET}@cache:99999/0",
        f"redis://:{SECRET}@[::1/0",
        f"redis://:{SECRET}@cache/zero",
        f"redis://:{SECRET}@cache/-1",
        f"redis://:{SECRET}@cache/0?db=zero",
        f"redis://:{SECRET}@cache/0?unheard_of={SECRET}",
        f"redis://:{SECRET}@cache/0?socket_timeout={SECRET}",
    ],
)
def test_a_wrong_redis_url_is_refused_without_repeating_it(url):
    message = refusal(**{**GOOD, "REDIS_URL": url})

    assert "REDIS_URL " in message
    assert "redis://" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "url", ["redis://cache", "redis://cache:1/15", "rediss://u:p@cache/0", "unix:///run/r.sock?db=1"]
)
def test_each_way_of_writing_a_redis_url_is_accepted(url):
    assert settings.load({**GOOD, "REDIS_URL": url}).redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROTA_LOG_FORMAT", "xml"),
        ("ROTA_LOG_LEVEL", "info"),
        ("ROTA_STRICT_PLUGINS", "perhaps"),
        *(("ROTA_LEASE_SECONDS", value) for value in ["0.5", "3601", "nan", "inf", "soon", "-15", "15s"]),
        *(("ROTA_HEARTBEAT_SECONDS", value) for value in ["0", "-1", "nan", "inf", "often"]),
        *(("ROTA_MAX_CRASHES", value) for value in ["0", "101", "1.5", "few"]),
        *(("ROTA_DISPATCH_SECONDS", value) for value in ["0", "61", "nan"]),
        *(("ROTA_RESEND_SECONDS", value) for value in ["0", "3601", "nan"]),
        *(("ROTA_RETENTION_DAYS", value) for value in ["0", "-1", "36501", "nan", "month"]),
        *(("ROTA_DB_POOL_SIZE", value) for value in ["1", "1001", "1e3", "many"]),
        *(
            ("ROTA_RESERVED_THREADS", value)
            for value in ["billing", "billing=", "billing=0", "billing=-1", "=2", "a=1,a=2"]
        ),
        *(("ROTA_METRICS_PORT", value) for value in ["-1", "65536", "http"]),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_without_itself(name, value):
    found = problems(**{name: value})

    assert len(found) == 1
    assert found[0].startswith(f"{name} ")
    if value.isalpha() and value not in {"info", "inf", "nan"}:
        assert value not in found[0].split()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("ROTA_LEASE_SECOND", "ROTA_LEASE_SECONDS"),
        ("ROTA_LEASESECONDS", "ROTA_LEASE_SECONDS"),
        ("ROTA_LOG_LVL", "ROTA_LOG_LEVEL"),
        ("ROTA_METRIC_PORT", "ROTA_METRICS_PORT"),
        ("ROTA_DISABLE_PLUGIN", "ROTA_DISABLED_PLUGINS"),
        ("ROTA_POOL_SIZE", "ROTA_DB_POOL_SIZE"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_nearest_one(wrong, meant):
    assert problems(**{wrong: "15"}) == [f"{wrong} is not a setting; did you mean {meant!r}?"]


@pytest.mark.parametrize(
    "name",
    [
        "ROTA_ZZZ",
        "ROTA_EXPIRY_SECONDS",
        "ROTA_EXPIRY_RETENTION_DAYS",
        "ROTA_MAINTENANCE_UPLOAD_ROOT",
        "ROTA_BIN_LEASE_SECONDS",
        "ROTA_EXPIRY_",
    ],
)
def test_what_a_plugin_that_is_gone_left_behind_stops_nothing(name, monkeypatch):
    monkeypatch.setattr(settings, "entry_points", lambda group: [])

    assert settings.load({**GOOD, name: SECRET})


@pytest.mark.parametrize(
    ("value", "reserved"),
    [("", {}), ("billing=2", {"billing": 2}), (" billing = 2 , mail=1,", {"billing": 2, "mail": 1})],
)
def test_reserved_threads_are_given_by_queue(value, reserved):
    assert settings.split_reservations(value) == reserved


def test_a_misspelt_setting_that_is_empty_counts_as_unset():
    assert settings.load({**GOOD, "ROTA_LEASE_SECOND": ""})


@pytest.mark.parametrize(
    ("environ", "numbers"),
    [
        ({"ROTA_LEASE_SECONDS": "8"}, "3 and 8 seconds"),
        ({"ROTA_HEARTBEAT_SECONDS": "5.5"}, "5.5 and 15 seconds"),
        ({"ROTA_LEASE_SECONDS": "2", "ROTA_HEARTBEAT_SECONDS": "1"}, "1 and 2 seconds"),
    ],
)
def test_a_lease_shorter_than_three_heartbeats_is_refused(environ, numbers):
    assert problems(**environ) == [
        f"ROTA_HEARTBEAT_SECONDS must be at most a third of ROTA_LEASE_SECONDS; they are {numbers}"
    ]


def test_a_lease_of_exactly_three_heartbeats_is_accepted():
    found = settings.load({**GOOD, "ROTA_LEASE_SECONDS": "3", "ROTA_HEARTBEAT_SECONDS": "1"})

    assert (found.lease_seconds, found.heartbeat_seconds) == (3, 1)


@pytest.mark.parametrize("value", ["", " ", ",", " , ,"])
def test_nothing_is_disabled_by_nothing(value):
    assert settings.disabled({"ROTA_DISABLED_PLUGINS": value}) == frozenset()


def test_disabled_plugins_are_read_without_any_other_setting():
    assert settings.disabled({"ROTA_DISABLED_PLUGINS": " expiry, mail ,"}) == {"expiry", "mail"}


def test_the_core_among_the_disabled_is_refused():
    with pytest.raises(SettingsError, match="ROTA_DISABLED_PLUGINS names 'core'"):
        settings.disabled({"ROTA_DISABLED_PLUGINS": "expiry,core"})
