"""The settings of this plugin."""

from pydantic import SecretStr, field_validator

from core import PluginSettings

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class InvitesSettings(PluginSettings):
    """The variable of a field is ROTA_INVITES_ and the field's name in capitals."""

    prefix = "ROTA_INVITES_"

    redis_url: SecretStr | None = None
    """Where applications count redemptions of codes, ``redis://host:6379/0``; by default REDIS_URL."""

    @field_validator("redis_url")
    @classmethod
    def _names_a_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(REDIS_SCHEMES):
            raise ValueError("must start with redis://, rediss:// or unix://, such as redis://localhost:6379/0")
        return value
