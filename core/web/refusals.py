"""Refusals that only HTTP has."""

from core.errors import RotaError


class CrossOrigin(RotaError):
    """A browser sent a request that changes something on behalf of another site."""


class TooManyWrites(RotaError):
    """A caller changes too much in a short time."""
