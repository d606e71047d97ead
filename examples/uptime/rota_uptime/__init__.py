"""What the plugin uptime offers, and nothing else."""

from pathlib import Path

from core import Job, PluginSettings, hookimpl
from rota_uptime.jobs import probe, probe_all
from rota_uptime.settings import UptimeSettings


class Uptime:
    """Named by the entry point."""

    @hookimpl
    def register_jobs(self) -> list[Job]:
        return [probe_all, probe]

    @hookimpl
    def register_migrations(self) -> Path:
        return Path(__file__).parent / "migrations"

    @hookimpl
    def register_settings(self) -> type[PluginSettings]:
        return UptimeSettings
