"""The client that a plugin gets from ``service_redis``."""

import pytest

from core import service_redis
from core.errors import SettingsError


def test_it_is_the_redis_of_the_settings_and_one_client_for_a_process(environment):
    service_redis().set("shop:opened", "yes")

    assert service_redis().get("shop:opened") == b"yes"
    assert service_redis() is service_redis()


def test_another_redis_can_be_named(redis_url):
    assert service_redis(f"{redis_url}").ping()


def test_without_a_setting_it_says_what_to_set(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)

    with pytest.raises(SettingsError, match="REDIS_URL is not set; expected redis://host"):
        service_redis()


def test_what_is_no_url_of_a_redis_is_refused_without_being_repeated():
    with pytest.raises(SettingsError, match="the URL of Redis must start with") as caught:
        service_redis("http://user:secret@host")

    assert "secret" not in str(caught.value)
