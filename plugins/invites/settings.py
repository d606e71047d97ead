"""The settings of this plugin."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from core import PluginSettings
from plugins.invites.gateway import BadGateway, check_address

Seconds = Annotated[float, Field(gt=0, le=600)]
Count = Annotated[int, Field(ge=1, le=10_000)]

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class InvitesSettings(PluginSettings):
    """The variable of a field is ROTA_INVITES_ and the field's name in capitals."""

    prefix = "ROTA_INVITES_"

    redis_url: SecretStr | None = None
    """Where applications count redemptions of codes, ``redis://host:6379/0``; by default REDIS_URL."""

    gateway: str | None = None
    """The address of the gateway, such as https://teams.example.org/api; without it, nobody is invited."""

    gateway_token: SecretStr | None = None
    """The token that identifies Rota at the gateway, sent as ``Authorization: Bearer``."""

    gateway_ca_file: Path | None = None
    """The file of the certificate authority of the gateway; by default the authorities of this machine are trusted."""

    gateway_connect_seconds: Seconds = 10.0
    """How long connecting to the gateway may take, in seconds."""

    gateway_read_seconds: Seconds = 30.0
    """How long the gateway may send nothing while it should answer, in seconds."""

    gateway_requests: Count = 10
    """How many requests the gateway gets at the same time."""

    team_requests: Count = 2
    """How many requests for one team the gateway gets at the same time."""

    webhook_secret: SecretStr | None = None
    """The secret with which the gateway signs webhooks, ``whsec_`` and Base64; without it, all webhooks are refused."""

    remove_orphans: bool = False
    """Whether members that no row explains are removed from the gateway. Otherwise they are only reported."""

    @field_validator("gateway")
    @classmethod
    def _names_a_gateway(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_address(value)
            except BadGateway as error:
                raise ValueError(error.problem) from error
        return value

    @field_validator("redis_url")
    @classmethod
    def _names_a_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(REDIS_SCHEMES):
            raise ValueError("must start with redis://, rediss:// or unix://, such as redis://localhost:6379/0")
        return value
