"""The hooks of the plugin uptime."""

from pathlib import Path

from core import Job, PluginSettings, hookimpl
from rota_uptime.jobs import probe, probe_all
from rota_uptime.settings import UptimeSettings


class Uptime:
    """The plugin, which the entry point names."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        return [probe_all, probe]

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"

    @hookimpl
    def register_settings(self) -> type[PluginSettings]:
        return UptimeSettings
