"""The errors of this plugin.

MailError                 a RotaError
"""

from core import RotaError


class MailError(RotaError):
    """The root of this plugin's errors."""
