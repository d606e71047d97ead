"""The address under which people on this machine reach the HTTP service."""

import ipaddress
from urllib.parse import urlencode

from core.settings import Settings

#: The hosts that stand for every address of this machine.
EVERYWHERE = {"0.0.0.0", "::", ""}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a service on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(configured: Settings) -> str:
    """Return the address of the HTTP service."""
    host = "localhost" if configured.web_host in EVERYWHERE else configured.web_host
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{configured.web_port}{configured.web_prefix}"


def login_link(configured: Settings, secret: str) -> str:
    """Return the link with which a browser logs in.

    The page of the link asks the person before it uses up the link, so a program that opens the link for a preview does
    no harm.
    """
    return f"{address(configured)}/login?{urlencode({'link': secret})}"
