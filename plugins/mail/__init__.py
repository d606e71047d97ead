"""Mail: polls mailboxes over IMAP, each at an interval of its own, and stores and processes every message once.

An application calls the functions below with its own session, in its own transaction; the jobs do the rest.
"""

from pathlib import Path

from core import PluginSettings, hookimpl
from plugins.mail.errors import MailError
from plugins.mail.settings import MailSettings

__all__ = [
    "Mail",
    "MailError",
]


class Mail:
    """The plugin's hooks."""

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"

    @hookimpl
    def register_settings(self) -> type[PluginSettings]:
        return MailSettings
