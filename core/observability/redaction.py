"""Hides secret values: in JSON by their names, and in errors, tracebacks and log lines by their texts.

The names are those of a job's ``Secret`` parameters, and those in ``ROTA_REDACT``. While a run is worked on, the values
of its secret arguments are replaced in every text that its thread logs or records. A value of fewer than four
characters is not looked for in texts, since it would be found everywhere.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

from core import settings

HIDDEN = "(hidden)"
#: The fewest characters of a value that is looked for in texts.
SHORTEST = 4

_secrets: ContextVar[tuple[str, ...]] = ContextVar("rota.secrets", default=())


def named(value: Any, names: Collection[str]) -> Any:
    """Return ``value``, of JSON, with the values of ``names`` hidden in objects at any depth. Case is ignored."""
    if not names:
        return value
    if isinstance(value, Mapping):
        return {key: HIDDEN if str(key).lower() in names else named(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [named(each, names) for each in value]
    return value


def texts(args: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """Return the texts as which the values of ``names`` in ``args`` can appear in an error or a log line, the longest
    first.
    """
    found = {form for value in _values(args, names) for form in _forms(value)}
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def _values(value: Any, names: Collection[str], *, is_secret: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _values(each, names, is_secret=is_secret or str(name).lower() in names)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _values(each, names, is_secret=is_secret)
    elif is_secret and value is not None and not isinstance(value, bool):
        yield str(value)


def _forms(text: str) -> Iterator[str]:
    """Yield the text as it is, as Python and JSON write it, and as a URL contains it."""
    if len(text) >= SHORTEST:
        yield text
        yield repr(text)[1:-1]
        yield json.dumps(text)[1:-1]
        yield quote(text.encode(errors="replace"), safe="")


@contextmanager
def hiding(secrets: tuple[str, ...]) -> Iterator[None]:
    """Hide ``secrets`` in every text that this thread logs or records in the block."""
    token = _secrets.set(secrets)
    try:
        yield
    finally:
        _secrets.reset(token)


def hide(text: str, secrets: Iterable[str] | None = None) -> str:
    """Return ``text`` without ``secrets``, which are by default those of the run that this thread works on."""
    for secret in _secrets.get() if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    return text


def hide_within(value: Any, secrets: Collection[str] | None = None) -> Any:
    """Return ``value`` without ``secrets``, which may be texts or numbers at any depth of lists and objects."""
    secrets = _secrets.get() if secrets is None else secrets
    if not secrets or value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {hide_within(key, secrets): hide_within(each, secrets) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [hide_within(each, secrets) for each in value]
    if isinstance(value, int | float):
        return HIDDEN if str(value) in secrets else value
    return hide(value if isinstance(value, str) else _text(value), secrets)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 — a job's own class
        return f"<{type(value).__name__}>"


def redacted() -> frozenset[str]:
    """Return the names of ``ROTA_REDACT``, in lower case."""
    return settings.redacted()
