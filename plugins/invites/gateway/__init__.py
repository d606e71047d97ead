"""The gateway: the system that has the members of the teams. Its interface, and its adapter for HTTP."""

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from plugins.invites.gateway.address import Address, check_address
from plugins.invites.gateway.errors import BadGateway, GatewayError, IncompleteListing, ReadFailed
from plugins.invites.gateway.gateway import Gateway, Member
from plugins.invites.gateway.outcomes import Done, Limited, NoSeats, NotSent, Outcome, Refused, Unknown

if TYPE_CHECKING:
    from plugins.invites.gateway.http import HttpGateway

__all__ = [
    "Address",
    "BadGateway",
    "Done",
    "Gateway",
    "GatewayError",
    "IncompleteListing",
    "Limited",
    "Member",
    "NoSeats",
    "NotSent",
    "Outcome",
    "ReadFailed",
    "Refused",
    "Unknown",
    "check_address",
    "open_gateway",
]


def open_gateway(address: Address) -> Gateway:
    """Return the gateway at ``address``. One process has one object for it, with its connections. Raises BadGateway.

    Nothing is connected before the first request.
    """
    check_address(address.url)
    return _opened(address, os.getpid())


@lru_cache(maxsize=8)
def _opened(address: Address, _pid: int) -> "HttpGateway":
    """Return the gateway of this process: a forked process must not share the connections of its parent."""
    from plugins.invites.gateway.http import HttpGateway

    return HttpGateway(address)
