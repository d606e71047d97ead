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


class TooManyWrites(RotaError):
    """A caller makes too many changes in a short time."""
