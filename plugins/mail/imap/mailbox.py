"""The mailbox that a poll reads: the parts of an account that a connection needs, and the credentials."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One folder of one user of one server."""

    account_id: int
    host: str
    port: int
    tls: str
    ca_file: str | None
    username: str
    folder: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """The secret part of a log-in: a password, or an OAuth2 access token."""

    password: str = field(default="", repr=False)
    access_token: str = field(default="", repr=False)
