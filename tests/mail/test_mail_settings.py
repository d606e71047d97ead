"""The settings of mail: they are checked when the plugin is loaded, with an error text for each invalid value."""

from pathlib import Path

import pytest

from core import RotaError
from plugins.mail.settings import MailSettings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("store", ["file:///srv/mail", "s3://bucket", "s3://bucket/some/prefix"])
def test_a_store_is_a_folder_or_a_bucket(store):
    assert MailSettings.read({"ROTA_MAIL_STORE": store}).store == store


@pytest.mark.parametrize(
    "store", ["/srv/mail", "file://srv/mail", "file:///", "file:///srv/../etc", "s3:///x", "gs://x"]
)
def test_another_store_is_refused(store):
    with pytest.raises(RotaError, match=r"^ROTA_MAIL_STORE .* expected file:///srv/mail or s3://"):
        MailSettings.read({"ROTA_MAIL_STORE": store})


def test_the_folder_of_secrets_is_an_absolute_path():
    with pytest.raises(RotaError, match=r"^ROTA_MAIL_SECRETS_DIR must be an absolute path$"):
        MailSettings.read({"ROTA_MAIL_SECRETS_DIR": "secrets"})


def test_no_error_shows_a_key():
    assert "AbC" not in repr(MailSettings.read({"ROTA_MAIL_KEY": "AbC"}))


def test_every_setting_is_described_with_its_sentence_and_default():
    described = (ROOT / "docs" / "plugins.md").read_text().splitlines()
    missing = [name for name in MailSettings.model_fields if row(name) not in described]

    assert not missing


def row(name: str) -> str:
    """Return the row of a setting in docs/plugins.md."""
    field = MailSettings.model_fields[name]
    default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
    return f"| `{MailSettings.prefix}{name.upper()}` | {default} | {field.description.replace('``', '`')} |"
