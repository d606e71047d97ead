"""Where the gateway is, and how this process identifies itself there."""

import ssl
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from plugins.invites.gateway.errors import BadGateway


@dataclass(frozen=True, slots=True)
class Address:
    """The gateway of ROTA_INVITES_GATEWAY, with the time-outs in seconds. Its ``repr`` does not show the token."""

    url: str
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    connect_seconds: float = 10
    read_seconds: float = 30
    #: A whole answer may take this long, even if its parts arrive in time.
    total_seconds: float = 120

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"the gateway {parts.scheme}://{parts.netloc}"

    def tls(self) -> ssl.SSLContext:
        """Return the certificate authorities that are trusted: those of ``ca_file``, or those of this machine."""
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            why = error.strerror if not isinstance(error, ssl.SSLError) else "it has no certificate"
            raise BadGateway(
                f"has a certificate authority in {str(self.ca_file)!r} that cannot be read: {why}"
            ) from None


def check_address(url: str) -> None:
    """Raise BadGateway unless ``url`` can be the address of a gateway. Nothing is connected."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadGateway("is no URL; expected for example https://teams.example.org/api") from None
    if parts.username is not None or parts.query or parts.fragment:
        raise BadGateway("must have no user, password or query; set the token by ROTA_INVITES_GATEWAY_TOKEN")
    if parts.scheme not in {"https", "http"} or not host:
        raise BadGateway(f"is {url!r}; expected for example https://teams.example.org/api")
    if parts.scheme == "http" and not is_this_machine(host):
        raise BadGateway(f"is {url!r}, to which addresses and the token would be sent unencrypted; use https://")


def is_this_machine(host: str) -> bool:
    """Return whether a connection to ``host`` does not leave this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
