"""Refusals that exist only in HTTP."""

from core.errors import RotaError


class CrossOrigin(RotaError):
    """A browser sent a request that changes something on behalf of another site."""


class PluginBusy(RotaError):
    """A plugin has as many requests in progress as it may have."""


class PluginTooSlow(RotaError):
    """A function of a plugin did not answer in time. Its transaction is rolled back."""


class ProviderAway(RotaError):
    """The OpenID Connect provider cannot be asked, or describes itself wrongly."""


class TooManyFailures(RotaError):
    """A client address has sent too many wrong secrets in a short time."""

    def __init__(self, per_minute: int, seconds: float) -> None:
        super().__init__(f"more than {per_minute} wrong tokens or log-ins a minute came from this address")
        #: The time after which one more is checked.
        self.seconds = seconds


class TooManyWrites(RotaError):
    """A caller makes too many changes in a short time."""
