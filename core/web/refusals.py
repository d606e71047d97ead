"""Refusals that exist only in HTTP."""

from core.errors import RotaError


class CrossOrigin(RotaError):
    """A browser sent a request that changes something on behalf of another site."""


class TooManyWrites(RotaError):
    """A caller makes too many changes in a short time."""
