"""Environment variables that nothing reads: the plugin that may have read them, and variables that are not reported."""

import pytest

from core import PluginSettings
from core.jobs.registry import Plugin, Registry
from core.plugins import unread_settings

SECRET = "s3cret"


class MailSettings(PluginSettings):
    prefix = "ROTA_MAIL_"

    poll_seconds: float = 60.0
    """How often a mailbox is polled, in seconds."""


LOADED = Plugin("mail", "rota-mail", "1.0", settings=MailSettings)


def told(*plugins: Plugin, **environ: str) -> dict[str, str]:
    return {left.variable: left.why for left in unread_settings.variables(environ, Registry(plugins))}


def test_what_the_core_and_plugins_read_is_not_told():
    assert told(LOADED, ROTA_LOG_LEVEL="INFO", ROTA_MAIL_POLL_SECONDS="5", DATABASE_URL="", ROTARY="1") == {}


def test_what_a_plugin_that_is_gone_left_behind_is_told_without_its_value():
    assert told(LOADED, ROTA_EXPIRY_DAYS=SECRET) == {
        "ROTA_EXPIRY_DAYS": "is not a setting of the core or of an installed plugin"
    }


def test_what_is_empty_counts_as_unset():
    assert told(ROTA_EXPIRY_DAYS="") == {}


def test_what_a_loaded_plugin_does_not_read_is_told():
    assert told(LOADED, ROTA_MAIL_FOLDER="inbox") == {"ROTA_MAIL_FOLDER": "is not a setting of plugin 'mail'"}


def test_a_plugin_without_settings_reads_nothing():
    assert list(told(Plugin("mail", "rota-mail", "1.0"), ROTA_MAIL_POLL_SECONDS="5")) == ["ROTA_MAIL_POLL_SECONDS"]


@pytest.mark.parametrize("state", [{"is_disabled": True}, {"error": "cannot be imported"}])
def test_what_a_disabled_or_broken_plugin_may_read_is_left_to_it(state):
    assert told(Plugin("mail", "rota-mail", "1.0", **state), ROTA_MAIL_ANYTHING="5") == {}


def test_of_two_plugins_whose_names_begin_alike_the_longer_one_is_asked():
    archive = Plugin("mail_archive", "rota-mail-archive", "1.0", is_disabled=True)

    assert told(LOADED, archive, ROTA_MAIL_ARCHIVE_DAYS="5") == {}
    assert list(told(LOADED, ROTA_MAIL_ARCHIVE_DAYS="5")) == ["ROTA_MAIL_ARCHIVE_DAYS"]
