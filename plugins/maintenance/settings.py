"""The settings of this plugin."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from core import PluginSettings

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class MaintenanceSettings(PluginSettings):
    """The variable of a field is ROTA_MAINTENANCE_ and the field's name in capitals."""

    prefix = "ROTA_MAINTENANCE_"

    upload_root: Path | None = None
    """The folder of the application's uploads, an absolute path; jobs that delete files need it."""

    redis_url: SecretStr | None = None
    """Where the application keeps sessions and its cache, ``redis://host:6379/0``; by default REDIS_URL."""

    temp_images_per_run: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """The most temporary images that one run deletes."""

    temp_entries_per_run: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """The most folder entries that one run reads to find temporary images; it may read up to about 1,000 more."""

    time_slot_retention_days: Annotated[float, Field(ge=0, le=36_500)] = 90.0
    """How long time slots are kept after their end, in days."""

    @field_validator("upload_root")
    @classmethod
    def _is_a_folder_of_its_own(cls, value: Path | None) -> Path | None:
        if value is not None and (not value.is_absolute() or ".." in value.parts):
            raise ValueError("must be an absolute path without ..")
        if value is not None and value == Path(value.anchor):
            raise ValueError("must not be the root of the file system")
        return value

    @field_validator("redis_url")
    @classmethod
    def _names_a_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(REDIS_SCHEMES):
            raise ValueError("must start with redis://, rediss:// or unix://, such as redis://localhost:6379/0")
        return value
