"""A plugin's settings: read from variables with its own prefix, checked when the plugin is loaded."""

import os
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import SettingsError, is_misspelt, suggestion


class PluginSettings(BaseModel):
    """A plugin's settings from the environment. Subclass it, and return the class from ``register_settings``::

        class BillingSettings(PluginSettings):
            prefix = "ROTA_BILLING_"

            grace_days: int = 3
            \"""How long an invoice may be late, in days.\"""

    The variable ``ROTA_BILLING_GRACE_DAYS`` sets ``grace_days``. Every field needs a default, so that ``rota jobs``
    needs no environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)

    #: The prefix of the plugin's variables: ``ROTA_<NAME OF THE PLUGIN>_``.
    prefix: ClassVar[str]
    _current: ClassVar[Self | None] = None

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Return every setting's environment variable, with the sentence that describes it."""
        return {cls.prefix + name.upper(): field.description or "" for name, field in cls.model_fields.items()}

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Return the settings in ``environ``.

        Raises SettingsError, which names every variable that is wrong or misspelt.

        A variable that resembles no field is ignored, since it may belong to another plugin, whose name begins with
        this plugin's name.
        """
        given = {name: value for name, value in environ.items() if name.startswith(cls.prefix) and value != ""}
        fields = {name.removeprefix(cls.prefix).lower(): value for name, value in given.items()}
        known = cls.model_fields
        try:
            return cls.model_validate({n: v for n, v in fields.items() if n in known or is_misspelt(n, known)})
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
        raise SettingsError("; ".join(cls._explain(str(problem["loc"][0]), problem["msg"]) for problem in problems))

    @classmethod
    def _explain(cls, field: str, message: str) -> str:
        variable = cls.prefix + field.upper()
        if field not in cls.model_fields:
            return f"{variable} is not a setting{suggestion(variable, cls.variables())}"
        message = message.removeprefix("Value error, ")
        return f"{variable} {message[0].lower()}{message[1:]}"

    @classmethod
    def current(cls) -> Self:
        """Return this process's settings, which are read on first use."""
        if cls._current is None:
            cls._current = cls.read(os.environ)
        return cls._current

    @classmethod
    def forget(cls) -> None:
        """Read the environment again on next use. For tests."""
        cls._current = None
