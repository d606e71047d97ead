"""The errors of connecting to the gateway and of TLS, each in a sentence that tells what to do."""

import socket
import ssl
from collections.abc import Iterator

import httpx2

from plugins.invites.gateway.address import Address

#: The texts of OpenSSL for a peer that does not speak TLS.
NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "HTTP_REQUEST"}


def not_reached(address: Address, error: Exception) -> str:
    """Return a sentence about a connection that could not be made."""
    if isinstance(error, httpx2.ConnectTimeout):
        return f"{address} has not accepted a connection within {address.connect_seconds:g} s"
    if isinstance(error, httpx2.PoolTimeout):
        return f"no connection to {address} became free within {address.connect_seconds:g} s"
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy to {address} has refused the connection; check HTTPS_PROXY and NO_PROXY"
    for each in causes(error):
        if isinstance(each, ssl.SSLError):
            return _no_tls(address, each)
        if isinstance(each, socket.gaierror):
            return f"the host of {address} cannot be found: {each.strerror}; check ROTA_INVITES_GATEWAY"
        if isinstance(each, OSError) and each.strerror:
            return f"{address} cannot be reached: {each.strerror}"
    return f"{address} cannot be reached: {type(error).__name__}"


def cut(address: Address, error: Exception) -> str:
    """Return a sentence about an exchange that has not come to its end."""
    if isinstance(error, httpx2.ReadTimeout):
        return f"{address} has sent nothing for {address.read_seconds:g} s"
    if isinstance(error, httpx2.WriteTimeout):
        return f"{address} has taken nothing for {address.read_seconds:g} s"
    if isinstance(error, httpx2.RemoteProtocolError):
        return f"{address} has ended the connection before its answer was complete, or does not speak HTTP"
    return f"the connection to {address} was lost: {type(error).__name__}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that led to ``error``, the nearest first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _no_tls(address: Address, error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {address} is not valid: {error.verify_message}; give the host's own name, or the file"
            " of its certificate authority as ROTA_INVITES_GATEWAY_CA_FILE"
        )
    if error.reason in NO_TLS:
        return f"{address} does not speak TLS on this port; check ROTA_INVITES_GATEWAY"
    return f"no TLS connection to {address} is possible: {(error.reason or 'unknown error').lower().replace('_', ' ')}"
