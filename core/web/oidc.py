"""An OpenID Connect provider: people log in there with an authorization code, PKCE, a state and a nonce.

This process stores nothing about a log-in. A cookie has one random secret, from which the state, the nonce and the
verifier are derived, so that any process of ``rota web`` can finish the log-in, and only in the browser that began it.
"""

import hmac
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from core.clock import Clock, system_clock
from core.errors import NotAuthenticated
from core.settings import Settings, check_https
from core.web import id_tokens
from core.web.refusals import ProviderAway

#: The path below the issuer's address where every provider describes itself (OpenID Connect Discovery 1.0, section 4).
DISCOVERY = "/.well-known/openid-configuration"
#: The path, below ``ROTA_WEB_URL``, to which the provider sends people back. The provider must know this address.
BACK = "/login/oidc/back"
#: The longest time that the provider may take to answer, and the longest time that a request waits for its place.
SECONDS = 3.0
#: The most log-ins that ask the provider at the same time. Log-ins that begin and log-ins that end are counted
#: separately.
MOST_AT_ONCE = 4
#: The most further log-ins that wait. More would leave too few of the ``MOST_REQUESTS`` of ``core/web/envelope.py``.
MOST_WAITING = 8
#: For how long the provider's description and its keys are used, in seconds.
DESCRIPTION_LASTS = 3600.0
#: If a token is signed with an unknown key, the keys are read again, but only if they are older than this, in seconds.
KEYS_LAST = 10.0
#: The form of the code of an error (RFC 6749, section 5.2).
ERROR = re.compile(r"[a-z_ ]{1,50}")
ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")


@dataclass(frozen=True, slots=True)
class Flow:
    """One log-in of one browser."""

    secret: str = field(repr=False)

    @property
    def state(self) -> str:
        """The text that the provider gives back."""
        return self._derived("state")

    @property
    def nonce(self) -> str:
        """The text that the ID token has."""
        return self._derived("nonce")

    @property
    def verifier(self) -> str:
        """The secret of PKCE (RFC 7636)."""
        return self._derived("verifier")

    def _derived(self, purpose: str) -> str:
        return hmac.new(self.secret.encode(errors="replace"), purpose.encode(), "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Person:
    """A person whom the provider knows."""

    #: The e-mail address if the provider has verified it, or else the provider's id of the person.
    name: str
    groups: frozenset[str]


class Places:
    """The places of requests that ask the provider."""

    def __init__(self) -> None:
        self._here = threading.Semaphore(MOST_AT_ONCE + MOST_WAITING)
        self._free = threading.Semaphore(MOST_AT_ONCE)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a place, and keep it during the block. Raises ProviderAway if too many requests wait, or if the wait
        is too long.
        """
        if not self._here.acquire(blocking=False):
            raise ProviderAway(f"{MOST_AT_ONCE + MOST_WAITING} requests wait for the provider")
        try:
            if not self._free.acquire(timeout=SECONDS):
                raise ProviderAway(f"{MOST_AT_ONCE} requests wait for the provider")
            try:
                yield
            finally:
                self._free.release()
        finally:
            self._here.release()


class Provider:
    """The provider of ``ROTA_OIDC_ISSUER``."""

    def __init__(
        self, configured: Settings, *, clock: Clock = system_clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._configured = configured
        self._clock = clock
        self._monotonic = monotonic
        self._begins, self._ends = Places(), Places()
        self._described: tuple[float, Mapping[str, Any]] | None = None
        self._keys: tuple[float, Mapping[str, Any]] | None = None

    def address(self, flow: Flow) -> str:
        """Return the provider's address for a log-in. Raises ProviderAway."""
        with self._begins.one(), self._client() as client:
            endpoint = self._description(client)["authorization_endpoint"]
            made, _state = client.create_authorization_url(
                endpoint, state=flow.state, nonce=flow.nonce, code_verifier=flow.verifier
            )
        return str(made)

    def person(self, flow: Flow, code: str) -> Person:
        """Return the person for whom the provider gave ``code``. Raises NotAuthenticated or ProviderAway."""
        from authlib.integrations.base_client import OAuthError

        with self._ends.one(), self._client() as client:
            endpoint = self._description(client)["token_endpoint"]
            try:
                given = client.fetch_token(
                    endpoint, grant_type="authorization_code", code=code, code_verifier=flow.verifier
                )
            except OAuthError as error:
                raise NotAuthenticated(f"the provider refused the log-in: {word(error.error)}") from None
            claims = self._claims(client, str(given.get("id_token", "")), flow)
        return self._person(claims)

    def _claims(self, client: Any, token: str, flow: Flow) -> Mapping[str, Any]:
        """Return the claims of an ID token. If its key is not known, the keys are read again."""
        wanted = id_tokens.Wanted(self._configured.oidc_issuer, self._configured.oidc_client_id, flow.nonce)
        now = round(self._clock().timestamp())
        try:
            return id_tokens.verified(token, self._key_set(client), wanted, now)
        except id_tokens.UnknownKey:
            return id_tokens.verified(token, self._key_set(client, is_changed=True), wanted, now)

    def _person(self, claims: Mapping[str, Any]) -> Person:
        email, groups = claims.get("email"), claims.get(self._configured.oidc_groups_claim, [])
        found = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        is_verified = claims.get("email_verified") is True and isinstance(email, str)
        name = str(email) if is_verified else str(claims["sub"])
        return Person(name, frozenset(each for each in found if isinstance(each, str)))

    def _description(self, client: Any) -> Mapping[str, Any]:
        kept = self._described
        if kept is not None and self._monotonic() - kept[0] < DESCRIPTION_LASTS:
            return kept[1]
        issuer = self._configured.oidc_issuer
        found = asked(client, f"{issuer.rstrip('/')}{DISCOVERY}")
        if found.get("issuer") != issuer:
            raise ProviderAway("the provider describes itself as another issuer than ROTA_OIDC_ISSUER")
        for name in ENDPOINTS:
            try:
                check_https(str(found.get(name, "")))
            except ValueError as error:
                raise ProviderAway(f"the provider's {name} {error}") from None
        self._described = (self._monotonic(), found)
        return found

    def _key_set(self, client: Any, *, is_changed: bool = False) -> Mapping[str, Any]:
        kept = self._keys
        lasts = KEYS_LAST if is_changed else DESCRIPTION_LASTS
        if kept is not None and self._monotonic() - kept[0] < lasts:
            return kept[1]
        found = asked(client, self._description(client)["jwks_uri"])
        self._keys = (self._monotonic(), found)
        return found

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """Yield a client of the provider. Errors of the network become ProviderAway, without an address or a secret."""
        import httpx2
        from authlib.integrations.httpx_client import OAuth2Client

        secret = self._configured.oidc_client_secret
        try:
            with OAuth2Client(
                self._configured.oidc_client_id,
                secret.get_secret_value() if secret else None,
                token_endpoint_auth_method="client_secret_basic" if secret else "none",
                scope=self._configured.oidc_scopes,
                redirect_uri=f"{self._configured.web_url}{BACK}",
                code_challenge_method="S256",
                timeout=SECONDS,
            ) as client:
                yield client
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise ProviderAway(f"the provider cannot be asked: {type(error).__name__}") from None


def asked(client: Any, url: str) -> Mapping[str, Any]:
    """Return the JSON object at an address. Raises httpx2's errors, or ValueError."""
    answer = client.request("GET", url, withhold_token=True)
    answer.raise_for_status()
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def word(said: object) -> str:
    """Return the code of an error of a provider, such as ``invalid_grant``, if it is one."""
    return str(said) if ERROR.fullmatch(str(said)) else "an error"
