"""Verifies ID tokens of OpenID Connect (Core 1.0, section 3.1.3.7)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import NotAuthenticated

#: The algorithms that are accepted: signatures with a key pair. ``none`` and algorithms with a shared secret are
#: refused.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
#: How far the clocks of the provider and of this machine may differ.
SKEW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Wanted:
    """The values that an ID token must have."""

    issuer: str
    client_id: str
    nonce: str


class UnknownKey(NotAuthenticated):
    """None of the provider's keys, as far as they are known here, made the signature."""


def verified(token: str, key_set: Mapping[str, Any], wanted: Wanted, now: int) -> Mapping[str, Any]:
    """Return the claims of a token that is valid at ``now``. Raises NotAuthenticated; the message does not contain the
    token.
    """
    from joserfc.errors import JoseError
    from joserfc.jwt import JWTClaimsRegistry

    claims = signed(token, key_set)
    registry = JWTClaimsRegistry(
        now=now,
        leeway=SKEW_SECONDS,
        iss={"essential": True, "value": wanted.issuer},
        aud={"essential": True, "value": wanted.client_id},
        nonce={"essential": True, "value": wanted.nonce},
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
    )
    try:
        registry.validate(dict(claims))
    except JoseError as error:
        raise NotAuthenticated(f"the provider's ID token is not valid: {type(error).__name__}{named(error)}") from None
    is_for_others = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if claims.get("azp", wanted.client_id if not is_for_others else None) != wanted.client_id:
        raise NotAuthenticated("the provider's ID token is for another client")
    return claims


def signed(token: str, key_set: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the claims of a token whose signature is right. Raises UnknownKey or NotAuthenticated."""
    from joserfc import jwt
    from joserfc.errors import BadSignatureError, InvalidKeyCurveError, JoseError, KeyParameterError

    for key in keys(token, key_set):
        try:
            return jwt.decode(token, key, algorithms=ALGORITHMS).claims
        except (BadSignatureError, KeyParameterError, InvalidKeyCurveError):  # a key for another use or algorithm
            continue
        except (JoseError, ValueError, TypeError) as error:
            raise NotAuthenticated(f"the provider's ID token cannot be read: {type(error).__name__}") from None
    raise UnknownKey("no key of the provider has signed the ID token")


def keys(token: str, key_set: Mapping[str, Any]) -> Sequence[Any]:
    """Return the keys that may have signed a token. Raises NotAuthenticated if ``token`` is not a token, or has no
    signature.
    """
    from joserfc import jws
    from joserfc.errors import JoseError

    try:
        header = jws.extract_compact(token.encode(errors="replace")).headers()
        if header.get("alg") not in ALGORITHMS:
            raise NotAuthenticated("the provider's ID token has no signature of an algorithm that is accepted")
        found = list(usable(key_set["keys"]))
    except (JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise NotAuthenticated(f"the provider's ID token cannot be read: {type(error).__name__}") from None
    kid, types = header.get("kid"), {"R": "RSA", "P": "RSA", "E": "EC"}
    wanted = "OKP" if header["alg"] in {"Ed25519", "EdDSA"} else types[header["alg"][0]]
    return [key for key in found if key.key_type == wanted and (kid is None or key.kid == kid)]


def usable(given: Sequence[Any]) -> Iterator[Any]:
    """Yield the keys that are understood here. Other keys of the provider are ignored (RFC 7517, section 5)."""
    from joserfc.errors import JoseError
    from joserfc.jwk import JWKRegistry

    for each in given:
        try:
            key = JWKRegistry.import_key(each)
            key.ensure_kid()
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):
            continue
        yield key


def named(error: Exception) -> str:
    """Return the claim that is wrong, if the error names one."""
    claim = getattr(error, "claim", None)
    return f" ({claim})" if isinstance(claim, str) else ""
