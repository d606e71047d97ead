"""A plugin's own settings: their prefix, and their errors."""

import pytest

from core import PluginSettings
from core.errors import PluginError, SettingsError
from core.plugins import loading


class BillingSettings(PluginSettings):
    prefix = "ROTA_BILLING_"

    grace_days: int = 3
    """How long an invoice may be late, in days."""

    currency: str = "GBP"
    """What invoices are in."""


def test_defaults_hold_where_the_environment_is_silent_or_empty():
    settings = BillingSettings.read({"ROTA_BILLING_CURRENCY": "", "ROTA_OTHER_GRACE_DAYS": "9"})

    assert (settings.grace_days, settings.currency) == (3, "GBP")


def test_a_variable_with_the_prefix_sets_its_field():
    assert BillingSettings.read({"ROTA_BILLING_GRACE_DAYS": "9"}).grace_days == 9


def test_every_wrong_variable_is_named_without_its_value():
    environ = {"ROTA_BILLING_GRACE_DAYS": "s3cret", "ROTA_BILLING_CURENCY": "EUR"}

    with pytest.raises(SettingsError) as refused:
        BillingSettings.read(environ)

    assert "ROTA_BILLING_GRACE_DAYS input should be a valid integer" in str(refused.value)
    assert "ROTA_BILLING_CURENCY is not a setting; did you mean 'ROTA_BILLING_CURRENCY'?" in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_what_is_near_no_field_is_left_alone():
    """``billing_archive`` may be another plugin."""
    environ = {"ROTA_BILLING_ARCHIVE_AFTER": "5", "ROTA_BILLING_ARCHIVE_GRACE_DAYS": "9"}

    assert BillingSettings.read(environ).grace_days == 3


def test_every_variable_has_its_sentence():
    assert BillingSettings.variables() == {
        "ROTA_BILLING_GRACE_DAYS": "How long an invoice may be late, in days.",
        "ROTA_BILLING_CURRENCY": "What invoices are in.",
    }


def test_the_current_settings_are_read_once_until_forgotten(monkeypatch):
    BillingSettings.forget()
    first = BillingSettings.current()
    monkeypatch.setenv("ROTA_BILLING_GRACE_DAYS", "5")

    assert BillingSettings.current() is first
    BillingSettings.forget()
    assert BillingSettings.current().grace_days == 5
    BillingSettings.forget()


def test_two_plugins_settings_are_not_mixed_up():
    class Other(PluginSettings):
        prefix = "ROTA_OTHER_"

    BillingSettings.forget()

    assert isinstance(BillingSettings.current(), BillingSettings)
    assert isinstance(Other.current(), Other)
    BillingSettings.forget()
    Other.forget()


def test_a_prefix_that_is_not_the_plugins_own_is_refused():
    with pytest.raises(PluginError, match="must be 'ROTA_INVOICES_'"):
        loading.check_settings("invoices", BillingSettings)


def test_a_class_of_another_kind_is_refused():
    with pytest.raises(PluginError, match="not a subclass of PluginSettings"):
        loading.check_settings("billing", dict)
