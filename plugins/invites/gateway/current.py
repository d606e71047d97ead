"""The gateway of the settings."""

from plugins.invites.gateway import Address, Gateway, open_gateway
from plugins.invites.gateway.errors import BadGateway
from plugins.invites.settings import InvitesSettings


def current_gateway() -> Gateway:
    """Return the gateway of ROTA_INVITES_GATEWAY. Raises BadGateway if it is not set, or cannot be used."""
    settings = InvitesSettings.current()
    if settings.gateway is None:
        raise BadGateway("is not set; give the address of the gateway, such as https://teams.example.org/api")
    token = settings.gateway_token.get_secret_value() if settings.gateway_token is not None else None
    return open_gateway(
        Address(
            settings.gateway,
            token,
            settings.gateway_ca_file,
            settings.gateway_connect_seconds,
            settings.gateway_read_seconds,
        )
    )
