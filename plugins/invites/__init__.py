"""Invites: gives the seats of teams to people, in order and never twice, and invites these people through a gateway.

An application calls the functions below with its own session, in its own transaction. The plugin's jobs do the other
work.
"""

from pathlib import Path

from core import Job, PluginSettings, hookimpl
from plugins.invites.addresses import normalize
from plugins.invites.errors import InvitesError
from plugins.invites.settings import InvitesSettings

__all__ = ["Invites", "InvitesError", "normalize"]


class Invites:
    """The plugin's implementation of Rota's hooks."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        return []

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"

    @hookimpl
    def register_settings(self) -> type[PluginSettings]:
        return InvitesSettings
