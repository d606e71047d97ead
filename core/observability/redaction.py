"""Hides secret values: in JSON by their names, and in errors, tracebacks and log lines by their texts.

The secret names are those of a job's ``Secret`` parameters, and those in ``ROTA_REDACT``. While a thread works on a
run, the values of the run's secret arguments are replaced in every text that the thread logs or records. A value of
fewer than four characters is not replaced in texts, since such a short text is found in many other words.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

from core import settings

HIDDEN = "(hidden)"
#: The fewest characters of a value that is replaced in texts.
SHORTEST = 4

_secrets: ContextVar[tuple[str, ...]] = ContextVar("rota.secrets", default=())


def named(value: Any, names: Collection[str]) -> Any:
    """Return the JSON ``value`` with the values of ``names`` hidden in objects at any depth.

    ``names`` must be in lower case. The case of the names in ``value`` is ignored.
    """
    if not names:
        return value
    if isinstance(value, Mapping):
        return {key: HIDDEN if str(key).lower() in names else named(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [named(each, names) for each in value]
    return value


def texts(args: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """Return the texts by which an error or a log line can contain the values of ``names`` in ``args``, the longest
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
    """Yield ``text`` unchanged, as Python writes it in ``repr``, as JSON writes it, and quoted for a URL."""
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
    """Return ``text`` without ``secrets``, by default without the secrets of the run that this thread works on."""
    for secret in _secrets.get() if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    return text


def hide_within(value: Any, secrets: Collection[str] | None = None) -> Any:
    """Return ``value`` without ``secrets``. They are hidden in texts and numbers, at any depth of lists and objects."""
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
    except Exception:  # noqa: BLE001 — ``value`` may be of a job's class, whose ``str`` may raise anything
        return f"<{type(value).__name__}>"


def redacted() -> frozenset[str]:
    """Return the names of ``ROTA_REDACT``, in lower case."""
    return settings.redacted()
