"""Mail: polls mailboxes over IMAP, each at an interval of its own, and stores and processes every message once.

An application calls the functions below with its own session, in its own transaction. The plugin's jobs do the other
work.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy.orm import Session

from core import Command, Job, KeySchedule, PluginSettings, Route, hookimpl
from plugins.mail import jobs
from plugins.mail.accounts import (
    POLL,
    add_account,
    change_account,
    delete_account,
    find_account,
    list_accounts,
    pause_account,
    resume_account,
    wanted_schedules,
)
from plugins.mail.errors import AccountTaken, BadAccount, MailError, UnknownAccount
from plugins.mail.retries import Retried, retry_messages
from plugins.mail.settings import MailSettings

__all__ = [
    "AccountTaken",
    "BadAccount",
    "Mail",
    "MailError",
    "Retried",
    "UnknownAccount",
    "add_account",
    "change_account",
    "delete_account",
    "find_account",
    "list_accounts",
    "pause_account",
    "resume_account",
    "retry_messages",
]


class Mail:
    """The plugin's implementation of Rota's hooks."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        return [
            jobs.polling(MailSettings.current()),
            jobs.sync_mailboxes,
            jobs.process_email,
            jobs.delete_mail_account,
            jobs.check_mail_store,
            jobs.check_mail_account,
        ]

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"

    @hookimpl
    def register_settings(self) -> type[PluginSettings]:
        return MailSettings

    @hookimpl
    def register_commands(self) -> list[Command]:
        return [
            Command("mail", "plugins.mail.commands:mail", "List and change the accounts whose mailboxes are polled.")
        ]

    @hookimpl
    def register_routes(self) -> list[Route]:
        return [
            Route("GET", "/accounts", "plugins.mail.routes:listed", "viewer", "Mail accounts"),
            Route("GET", "/accounts/{name}", "plugins.mail.routes:one", "viewer", "Mail account"),
            Route("POST", "/accounts/{name}/pause", "plugins.mail.routes:pause", "operator"),
            Route("POST", "/accounts/{name}/resume", "plugins.mail.routes:resume", "operator"),
            Route("POST", "/accounts/{name}/poll", "plugins.mail.routes:poll", "operator"),
        ]

    @hookimpl
    def register_schedules(self) -> Mapping[str, Callable[[Session], list[KeySchedule]]]:
        return {POLL: wanted_schedules}
