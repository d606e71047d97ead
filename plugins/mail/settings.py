"""The settings of this plugin."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from core import PluginSettings
from plugins.mail.store import StoreAddressError, check_address

MIB = 1024 * 1024


class MailSettings(PluginSettings):
    """The variable of a field is ROTA_MAIL_ and the field's name in capitals."""

    prefix = "ROTA_MAIL_"

    store: str | None = None
    """Where messages are stored, ``file:///srv/mail`` or ``s3://bucket/prefix``; without it, no mailbox is polled."""

    secrets_dir: Path | None = None
    """The folder of the accounts' passwords, an absolute path. Each file has the name of its secret."""

    key: SecretStr | None = None
    """The keys that encrypt OAuth2 tokens, separated by commas. The first key encrypts, and all keys decrypt."""

    max_bytes: Annotated[int, Field(ge=1024, le=2**40)] = 50 * MIB
    """A message that is larger than this is recorded, and not fetched."""

    messages_per_run: Annotated[int, Field(ge=1, le=100_000)] = 50
    """After this many messages, a poll leaves the other messages to a further run, which follows at once."""

    bytes_per_run: Annotated[int, Field(ge=1024, le=2**40)] = 100 * MIB
    """After this many bytes, a poll leaves the other messages to a further run, which follows at once."""

    polls_per_host: Annotated[int, Field(ge=1, le=10_000)] = 10
    """How many mailboxes of one host are polled at the same time."""

    connect_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    """How long connecting to a server may take, in seconds."""

    read_seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    """How long a server may send nothing while it should answer, in seconds."""

    next_jobs: str | None = None
    """Jobs of other plugins, separated by commas, that are requested for each processed message."""

    @field_validator("store")
    @classmethod
    def _names_a_store(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_address(value)
            except StoreAddressError as error:
                raise ValueError(error.problem) from error
        return value

    @property
    def jobs_after(self) -> list[str]:
        """The names in ``next_jobs``."""
        return [name for each in (self.next_jobs or "").split(",") if (name := each.strip())]

    @field_validator("secrets_dir")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value
