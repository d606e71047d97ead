"""The address under which people on this machine reach the HTTP service."""

import ipaddress
from urllib.parse import urlencode

from core.errors import RotaError
from core.settings import Settings

#: The hosts that stand for every address of this machine.
EVERYWHERE = {"0.0.0.0", "::", ""}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a service on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_local(configured: Settings) -> bool:
    """Return whether only this machine can reach the HTTP service itself."""
    return configured.web_socket is not None or is_loopback(configured.web_host)


def address(configured: Settings) -> str:
    """Return the address of the HTTP service, such as ``http://localhost:9190`` or ``unix:/run/rota/web.sock``."""
    if configured.web_socket is not None:
        return f"unix:{configured.web_socket}"
    named = f"[{host(configured)}]" if ":" in host(configured) else host(configured)
    return f"http://{named}:{configured.web_port}{configured.web_prefix}"


def host(configured: Settings) -> str:
    """Return the host under which this machine reaches the port."""
    return "localhost" if configured.web_host in EVERYWHERE else configured.web_host


def login_link(configured: Settings, secret: str) -> str:
    """Return the link with which a browser logs in.

    The page of the link asks the person before it uses up the link, so a program that opens the link for a preview does
    no harm. Raises RotaError if browsers cannot use the address of a Unix socket, and no other is set.
    """
    if configured.web_socket is not None and not configured.web_url:
        raise RotaError("browsers cannot use ROTA_WEB_SOCKET; set ROTA_WEB_URL to the address of the proxy")
    place = configured.web_url if configured.web_socket is not None else address(configured)
    return f"{place}/login?{urlencode({'link': secret})}"
