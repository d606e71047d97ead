"""The plugin's settings."""

from core import PluginSettings


class UptimeSettings(PluginSettings):
    """The plugin's settings."""

    prefix = "ROTA_UPTIME_"

    timeout_seconds: float = 10.0
    """How long a site may take to answer, in seconds."""
