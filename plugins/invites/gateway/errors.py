"""The errors of the gateway.

GatewayError          a RotaError
├── BadGateway        the settings name no gateway that can be used
├── RequestNotSent    the gateway has not taken a request
├── OutcomeUnknown    a request may or may not have been carried out
└── ReadFailed        what the gateway has could not be read
    └── IncompleteListing
"""

from datetime import timedelta

from core import RotaError


class GatewayError(RotaError):
    """The base class of the gateway's errors. Their texts contain neither addresses of persons nor secrets."""


class BadGateway(GatewayError):
    """The address, the token or the file of the certificate authority cannot be used. ``problem`` follows a name."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"ROTA_INVITES_GATEWAY {problem}")
        self.problem = problem


class RequestNotSent(GatewayError):
    """The gateway has not taken a request, and a person may have to act. The request is sent again."""


class OutcomeUnknown(GatewayError):
    """A request may or may not have been carried out. It is sent again with the same id."""


class ReadFailed(GatewayError):
    """The gateway could not be read. ``wait`` is how long it wants no request, or None if it has not said so."""

    def __init__(self, why: str, wait: timedelta | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class IncompleteListing(ReadFailed):
    """The pages of a listing do not make up the whole team, or the team changed while it was listed."""
