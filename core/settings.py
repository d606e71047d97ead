"""The settings, which are read once from the environment into a frozen object. Each setting has a description.

``load()`` reports all problems together. A wrong value never falls back to a default, and no message contains a value
that may be secret.
"""

import ipaddress
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from core.errors import SettingsError, is_misspelt, suggestion

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Mode = Literal["distributed", "local", "auto"]

POSTGRESQL_SCHEMES = {"postgresql", "postgres", "postgresql+psycopg2"}
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")

#: The prefix of all Rota's variables except the two URLs and SCHEDULER_MODE.
PREFIX = "ROTA_"
DISABLED_PLUGINS = f"{PREFIX}DISABLED_PLUGINS"
REDACT = f"{PREFIX}REDACT"
MOST_SCHEDULES = f"{PREFIX}MOST_SCHEDULES"
#: The name of the plugin that comes with the core.
CORE = "core"

#: The fewest characters of ``ROTA_WEB_TOKEN``.
SHORTEST_TOKEN = 32
#: The element of ``ROTA_WEB_PROXIES`` for programs that connect to the Unix socket.
UNIX = "unix"
#: One or more segments of a path, such as ``/apps/rota``.
WEB_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")

#: The name of a header of a request, in any case.
HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,99}")
#: Headers that mean something else already, so that no proxy can have them for a user or for groups.
NOT_FOR_USERS = frozenset({"authorization", "cookie", "host", "origin", "content-length", "content-type"})
ROLES = ("viewer", "operator", "admin")
#: The hosts of this machine, with which OIDC needs no HTTPS.
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})

#: With fewer heartbeats than this per lease, one late heartbeat could lose the lease.
HEARTBEATS_PER_LEASE = 3


@dataclass(frozen=True, slots=True)
class GroupRole:
    """The role of the members of a group, and the plugins and queues to which they are limited; None for all."""

    #: ``*`` stands for every person who has been identified.
    group: str
    role: Literal["viewer", "operator", "admin"]
    plugins: frozenset[str] | None = None
    queues: frozenset[str] | None = None


class Settings(BaseModel):
    """The settings of Rota's core."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    database_url: Annotated[SecretStr, Field(validation_alias="DATABASE_URL")]
    """The ledger's PostgreSQL database, ``postgresql://user:password@host:5432/name``. Required."""

    mode: Annotated[Mode, Field(validation_alias="SCHEDULER_MODE")] = "auto"
    """Whether runs go over Redis: ``distributed`` always, ``auto`` unless Redis is away, ``local`` never."""

    redis_url: Annotated[SecretStr | None, Field(validation_alias="REDIS_URL", validate_default=True)] = None
    """The Redis that carries messages, ``redis://host:6379/0``. Required, unless ``SCHEDULER_MODE`` is ``local``."""

    log_format: Annotated[LogFormat, Field(validation_alias="ROTA_LOG_FORMAT")] = "auto"
    """``console`` for people, ``json`` for machines, ``auto``: console on a terminal, JSON elsewhere."""

    log_level: Annotated[LogLevel, Field(validation_alias="ROTA_LOG_LEVEL")] = "INFO"
    """The least severe level that is logged."""

    strict_plugins: Annotated[bool, Field(validation_alias="ROTA_STRICT_PLUGINS")] = False
    """Refuse to start when a plugin is broken, instead of starting without it."""

    disabled_plugins: Annotated[str, Field(validation_alias=DISABLED_PLUGINS)] = ""
    """Installed plugins that must not be loaded, separated by commas."""

    lease_seconds: Annotated[float, Field(validation_alias="ROTA_LEASE_SECONDS", ge=1, le=3600)] = 15.0
    """How long a process may send no heartbeat before its runs are recovered, in seconds."""

    heartbeat_seconds: Annotated[
        float, Field(validation_alias="ROTA_HEARTBEAT_SECONDS", gt=0, validate_default=True)
    ] = 3.0
    """How often a process renews its leases, in seconds; at most a third of ``ROTA_LEASE_SECONDS``."""

    max_crashes: Annotated[int, Field(validation_alias="ROTA_MAX_CRASHES", ge=1, le=100)] = 3
    """A run is declared dead after this many worker processes have died while they worked on it."""

    dispatch_seconds: Annotated[float, Field(validation_alias="ROTA_DISPATCH_SECONDS", gt=0, le=60)] = 1.0
    """How often the dispatcher looks for due runs and slots, in seconds."""

    resend_seconds: Annotated[float, Field(validation_alias="ROTA_RESEND_SECONDS", ge=1, le=3600)] = 5.0
    """A message is sent again if it left its queue this many seconds ago and its run has not started."""

    orphan_seconds: Annotated[float, Field(validation_alias="ROTA_ORPHAN_SECONDS", ge=0, le=86400)] = 3600.0
    """If no live process has a job for this many seconds, although an earlier release had it, its runs are orphaned."""

    stale_hours: Annotated[float, Field(validation_alias="ROTA_STALE_HOURS", gt=0, le=8760)] = 24.0
    """Messages and results in Redis that are of no use any more are removed when they are older than this, in hours."""

    redact: Annotated[str, Field(validation_alias=REDACT)] = ""
    """Names of arguments whose values are hidden wherever they are shown or logged, separated by commas."""

    retention_days: Annotated[float, Field(validation_alias="ROTA_RETENTION_DAYS", gt=0, le=36500)] = 30.0
    """How long finished runs are kept, in days."""

    audit_days: Annotated[float, Field(validation_alias="ROTA_AUDIT_DAYS", gt=0, le=36500)] = 365.0
    """How long entries of the audit are kept, in days."""

    most_schedules: Annotated[int, Field(validation_alias=MOST_SCHEDULES, ge=1, le=100_000_000)] = 1_000_000
    """The most schedules made at run time that there may be, of all jobs."""

    max_messages: Annotated[int, Field(validation_alias="ROTA_MAX_MESSAGES_PER_PROCESS", ge=0)] = 1000
    """A worker process that has worked on this many messages is replaced; 0: never."""

    max_memory_mb: Annotated[int, Field(validation_alias="ROTA_MAX_MEMORY_MB", ge=0)] = 0
    """A worker process that holds more memory than this, in MiB, is replaced; 0: never."""

    min_process_seconds: Annotated[float, Field(validation_alias="ROTA_MIN_PROCESS_SECONDS", ge=0, le=86400)] = 60.0
    """The shortest life of a process before a limit replaces it, in seconds. A start costs about a second of CPU."""

    db_pool_size: Annotated[int, Field(validation_alias="ROTA_DB_POOL_SIZE", ge=2, le=1000)] = 20
    """The most PostgreSQL connections that a process opens for its jobs; at least its threads plus two."""

    reserved_threads: Annotated[str, Field(validation_alias="ROTA_RESERVED_THREADS")] = ""
    """Numbers of threads of each worker process that are reserved for a queue, such as ``billing=2,mail=1``."""

    metrics_host: Annotated[str, Field(validation_alias="ROTA_METRICS_HOST")] = "127.0.0.1"
    """The address on which a worker serves ``/metrics``; by default only this machine can reach it."""

    metrics_port: Annotated[int, Field(validation_alias="ROTA_METRICS_PORT", ge=0, le=65535)] = 9191
    """The port on which a worker serves ``/metrics``; 0 turns it off."""

    metrics_dir: Annotated[Path | None, Field(validation_alias="ROTA_METRICS_DIR")] = None
    """The folder in which the processes of one worker share their metrics; by default a new temporary folder."""

    web_host: Annotated[str, Field(validation_alias="ROTA_WEB_HOST")] = "127.0.0.1"
    """The address on which `rota web` serves HTTP; by default only this machine can reach it."""

    web_port: Annotated[int, Field(validation_alias="ROTA_WEB_PORT", ge=0, le=65535)] = 9190
    """The port on which `rota web` serves HTTP; with 0, `rota up` starts no HTTP service."""

    web_socket: Annotated[Path | None, Field(validation_alias="ROTA_WEB_SOCKET")] = None
    """A Unix socket on which `rota web` serves HTTP instead of a port; only its owner and its group can connect."""

    web_prefix: Annotated[str, Field(validation_alias="ROTA_WEB_PREFIX")] = ""
    """The path below which a proxy publishes `rota web`, such as `/rota`; the proxy may remove it or not."""

    web_token: Annotated[SecretStr | None, Field(validation_alias="ROTA_WEB_TOKEN")] = None
    """A token of an admin, of at least 32 characters, that is valid without an entry in the ledger."""

    web_legacy: Annotated[bool, Field(validation_alias="ROTA_WEB_LEGACY")] = True
    """Whether `rota web` also answers at the addresses of the systems that Rota replaces."""

    web_proxies: Annotated[str, Field(validation_alias="ROTA_WEB_PROXIES")] = ""
    """Trusted proxies, whose `X-Forwarded-…` headers count: addresses, networks, `unix` for `ROTA_WEB_SOCKET`."""

    web_roles: Annotated[str, Field(validation_alias="ROTA_WEB_ROLES")] = ""
    """The roles of groups of people, such as `ops=operator; *=viewer`; the first entry that matches counts."""

    web_user_header: Annotated[str, Field(validation_alias="ROTA_WEB_USER_HEADER")] = ""
    """The header in which a trusted proxy names the user, such as `X-Forwarded-User`; needs `ROTA_WEB_ROLES`."""

    web_groups_header: Annotated[str, Field(validation_alias="ROTA_WEB_GROUPS_HEADER")] = ""
    """The header in which a trusted proxy names the user's groups, separated by commas."""

    web_url: Annotated[str, Field(validation_alias="ROTA_WEB_URL")] = ""
    """The address at which browsers reach `rota web`, with its prefix, such as `https://example.org/rota`; for OIDC."""

    oidc_client_id: Annotated[str, Field(validation_alias="ROTA_OIDC_CLIENT_ID")] = ""
    """The id under which the OIDC provider knows Rota."""

    oidc_client_secret: Annotated[SecretStr | None, Field(validation_alias="ROTA_OIDC_CLIENT_SECRET")] = None
    """The secret with which Rota shows itself to the OIDC provider; none for a public client."""

    oidc_scopes: Annotated[str, Field(validation_alias="ROTA_OIDC_SCOPES")] = "openid profile email"
    """The scopes that are asked for, separated by spaces; `openid` is one of them."""

    oidc_groups_claim: Annotated[str, Field(validation_alias="ROTA_OIDC_GROUPS_CLAIM")] = "groups"
    """The claim of the ID token that has the person's groups."""

    oidc_issuer: Annotated[str, Field(validation_alias="ROTA_OIDC_ISSUER")] = ""
    """The OIDC provider with which people log in, as its tokens name it; needs the client id, the URL and the roles."""

    @field_validator("disabled_plugins", "reserved_threads", "web_proxies", "web_roles")
    @classmethod
    def _lists(cls, value: str, info: ValidationInfo) -> str:
        readers: dict[str | None, Callable[[str], object]] = {
            "disabled_plugins": split_names,
            "reserved_threads": split_reservations,
            "web_proxies": split_networks,
            "web_roles": split_roles,
        }
        readers[info.field_name](value)
        return value

    @field_validator("web_user_header", "web_groups_header")
    @classmethod
    def _headers_of_a_proxy(cls, value: str, info: ValidationInfo) -> str:
        if value and (not HEADER.fullmatch(value) or value.lower() in NOT_FOR_USERS):
            raise ValueError("is not the name of a header that a proxy can use for this, such as X-Forwarded-User")
        needed = {"web_proxies": "ROTA_WEB_PROXIES", "web_roles": "ROTA_WEB_ROLES"}
        require_others(value, info, needed)
        return value

    @field_validator("web_url")
    @classmethod
    def _web_url(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        check_own_url(value)
        if not urlsplit(value).path.endswith(info.data.get("web_prefix", "")):
            raise ValueError("must end with ROTA_WEB_PREFIX")
        return value

    @field_validator("oidc_scopes")
    @classmethod
    def _oidc_scopes(cls, value: str) -> str:
        if "openid" not in value.split():
            raise ValueError("must have openid, such as openid profile email")
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _oidc_issuer(cls, value: str, info: ValidationInfo) -> str:
        if value:
            check_https(value)
        needed = {"oidc_client_id": "ROTA_OIDC_CLIENT_ID", "web_url": "ROTA_WEB_URL", "web_roles": "ROTA_WEB_ROLES"}
        require_others(value, info, needed)
        return value

    @field_validator("web_token")
    @classmethod
    def _web_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < SHORTEST_TOKEN:
            raise ValueError(
                f"must have at least {SHORTEST_TOKEN} characters; `openssl rand -hex 32` prints a good one"
            )
        return value

    @field_validator("web_prefix")
    @classmethod
    def _web_prefix(cls, value: str) -> str:
        if value and not WEB_PREFIX.fullmatch(value):
            raise ValueError(
                "must begin with a slash and not end with one, such as /rota; letters, digits, - . _ ~ only"
            )
        return value

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: SecretStr) -> SecretStr:
        check_database_url(value.get_secret_value())
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            check_redis_url(value.get_secret_value())
        elif info.data.get("mode", "local") != "local":
            raise PydanticCustomError("missing", "is required")
        return value

    @field_validator("heartbeat_seconds")
    @classmethod
    def _heartbeats_fit_into_a_lease(cls, value: float, info: ValidationInfo) -> float:
        lease_seconds = info.data.get("lease_seconds", math.inf)
        if value * HEARTBEATS_PER_LEASE > lease_seconds:
            raise ValueError(
                f"must be at most a third of ROTA_LEASE_SECONDS; they are {value:g} and {lease_seconds:g} seconds"
            )
        return value


def check_database_url(url: str) -> None:
    """Raise ValueError, without repeating the URL, unless it names a PostgreSQL database."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("is not a URL; expected postgresql://user:password@host:5432/name") from None
    if parsed.drivername not in POSTGRESQL_SCHEMES:
        raise ValueError(f"starts with {parsed.drivername}://; expected postgresql://user:password@host:5432/name")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ValueError("has an invalid port; expected postgresql://user:password@host:5432/name")
    if not parsed.database:
        raise ValueError("names no database; expected postgresql://user:password@host:5432/name")
    for name in parsed.query:
        check_connection_option(name)


def check_connection_option(name: str) -> None:
    """Raise ValueError unless libpq has an option ``name``."""
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import parse_dsn

    try:
        parse_dsn(f"{name}=''")
    except ProgrammingError:
        raise ValueError(
            f"has the option {name!r}, which libpq does not know; "
            "see https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"
        ) from None


def check_redis_url(url: str) -> None:
    """Raise ValueError, without repeating the URL, unless redis-py understands it."""
    from redis import ConnectionPool

    if not url.startswith(REDIS_SCHEMES):
        raise ValueError("must start with redis://, rediss:// or unix://, such as redis://localhost:6379/0")
    try:
        ConnectionPool.from_url(url).make_connection()  # this makes an object, but does not connect
        database = "" if url.startswith("unix://") else urlsplit(url).path.strip("/")
        if database and not database.isdecimal():
            raise ValueError("redis-py would silently use database 0")
    except (ValueError, TypeError):
        raise ValueError("is not a Redis URL; expected redis://host:6379/0") from None


def split_names(value: str) -> frozenset[str]:
    """Return the plugins that ``value`` names. Raises ValueError if the core is one of them."""
    found = frozenset(name.strip() for name in value.split(",") if name.strip())
    if CORE in found:
        raise ValueError(f"names {CORE!r}, which has the ledger's tables and cannot be disabled")
    return found


def split_reservations(value: str) -> dict[str, int]:
    """Return the number of threads that ``value`` reserves for each queue. Raises ValueError."""
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        queue, equals, threads = (word.strip() for word in part.partition("="))
        if not queue or not equals or not threads.isdecimal() or not int(threads):
            raise ValueError(f"has {part!r}; expected QUEUE=THREADS with at least one thread, such as billing=2,mail=1")
        if queue in found:
            raise ValueError(f"names the queue {queue!r} twice")
        found[queue] = int(threads)
    return found


def split_networks(value: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Return the networks that ``value`` names; an address is a network of its own. ``unix`` is left out.

    Raises ValueError.
    """
    found = []
    for part in proxies(value) - {UNIX}:
        try:
            found.append(ipaddress.ip_network(part))
        except ValueError:
            raise ValueError(
                f"has {part!r}; expected addresses, networks or unix, such as 10.0.0.5, fd00::/8"
            ) from None
    return tuple(found)


def proxies(value: str) -> frozenset[str]:
    """Return the elements of a list of proxies."""
    return frozenset(filter(None, (part.strip() for part in value.split(","))))


def split_roles(value: str) -> tuple[GroupRole, ...]:
    """Return the roles of groups that ``value`` names, in the order of ``value``. Raises ValueError."""
    return tuple(group_role(part.strip()) for part in value.split(";") if part.strip())


def group_role(text: str) -> GroupRole:
    """Return the role of a group in ``GROUP=ROLE``, followed by limits such as ``plugin:billing`` and ``queue:mail``.

    A group may have any characters but semicolons. Raises ValueError.
    """
    group, equals, words = text.rpartition("=")
    role, *limits = words.split() or [""]
    names: dict[str, set[str]] = {}
    for limit in limits:
        kind, colon, name = limit.partition(":")
        if kind not in {"plugin", "queue"} or not colon or not name:
            raise ValueError(f"has the limit {limit!r}; expected plugin:NAME or queue:NAME")
        names.setdefault(kind, set()).add(name)
    if not group.strip() or not equals or role not in ROLES:
        raise ValueError(f"has {text!r}; expected GROUP=ROLE with the role {', '.join(ROLES)}, such as ops=operator")
    plugins, queues = (frozenset(names[kind]) if kind in names else None for kind in ("plugin", "queue"))
    return GroupRole(group.strip(), role, plugins, queues)  # type: ignore[arg-type]  # it is one of ROLES


def require_others(value: str, info: ValidationInfo, needed: Mapping[str, str]) -> None:
    """Raise ValueError if there is a ``value``, but one of the ``needed`` settings is empty."""
    absent = [variable for field, variable in needed.items() if value and not info.data.get(field)]
    if absent:
        raise ValueError(f"needs {' and '.join(absent)}")


def check_https(url: str) -> None:
    """Raise ValueError unless ``url`` is an HTTPS address, or an HTTP address of this machine."""
    parts = urlsplit(url)
    is_here = parts.scheme == "http" and parts.hostname in THIS_MACHINE
    if not parts.hostname or not (parts.scheme == "https" or is_here):
        raise ValueError("must be an address that begins with https://")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError("must be an address without a user, a query and a fragment")


def check_own_url(url: str) -> None:
    """Raise ValueError unless ``url`` can be the beginning of Rota's own addresses."""
    check_https(url)
    if url.endswith("/"):
        raise ValueError("must not end with a slash")


def disabled(environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return the plugins that must not be loaded. Reads no other setting. Raises SettingsError."""
    environ = os.environ if environ is None else environ
    try:
        return split_names(environ.get(DISABLED_PLUGINS, ""))
    except ValueError as error:
        raise SettingsError(f"{DISABLED_PLUGINS} {error}") from None


def redacted() -> frozenset[str]:
    """Return the names of arguments that are hidden, in lower case. Reads no other setting."""
    return split_redacted(os.environ.get(REDACT, ""))


def most_schedules() -> int:
    """Return the largest allowed number of schedules made at run time. Reads no other setting. Raises SettingsError."""
    value = os.environ.get(MOST_SCHEDULES, "") or Settings.model_fields["most_schedules"].default
    try:
        return int(value)
    except ValueError:
        raise SettingsError(f"{MOST_SCHEDULES} must be a whole number") from None


@lru_cache(maxsize=10)
def split_redacted(value: str) -> frozenset[str]:
    """Return the names in ``value``, in lower case."""
    return frozenset(name.strip().lower() for name in value.split(",") if name.strip())


def redis_url() -> str:
    """Return REDIS_URL. Reads no other setting. Raises SettingsError if it is not set."""
    url = os.environ.get("REDIS_URL", "")
    if not url:
        raise SettingsError(f"REDIS_URL is not set; {HOW_TO_SET['REDIS_URL']}")
    return url


def names() -> dict[str, str]:
    """Return every setting's environment variable, with the sentence that describes it."""
    fields = Settings.model_fields
    return {str(field.validation_alias): field.description or "" for field in fields.values()}


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from ``environ``, which is by default this process's environment.

    Raises SettingsError, which names every variable that is missing, wrong or misspelt.
    """
    environ = os.environ if environ is None else environ
    given = {name: environ[name] for name in names() if environ.get(name, "") != ""}
    problems = [*misspelt(environ)]
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        problems += [explain(problem) for problem in error.errors(include_url=False, include_input=False)]
    if problems:
        raise SettingsError("the settings are not usable:\n" + "\n".join(f"  {line}" for line in problems))
    return settings


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each variable that is probably a misspelt setting of the core.

    Plugins check their own variables. A variable that resembles no setting probably belongs to a removed plugin.
    """
    known = {name.removeprefix(PREFIX): name for name in names()}
    plugins = tuple(plugin_prefix(point.name) for point in entry_points(group="rota.plugins"))
    ours = (name for name in unknown(environ) if not name.startswith(plugins))
    wrong = (name for name in ours if is_misspelt(name.removeprefix(PREFIX), known))
    return [f"{name} is not a setting{suggestion(name, known.values())}" for name in wrong]


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Return the ``ROTA_…`` variables that are set and are not settings of the core."""
    return sorted(name for name in environ.keys() - names().keys() if name.startswith(PREFIX) and environ[name] != "")


def plugin_prefix(plugin: str) -> str:
    """Return the prefix of the environment variables of a plugin's settings."""
    return f"{PREFIX}{plugin.upper().replace('-', '_')}_"


def explain(problem: Any) -> str:
    """Return the message for one of pydantic's errors, without the value."""
    name = str(problem["loc"][0])
    if name in Settings.model_fields:  # for an invalid default, pydantic gives the field's name
        name = str(Settings.model_fields[name].validation_alias)
    if problem["type"] == "missing":
        return f"{name} is not set; {HOW_TO_SET.get(name, 'it is required')}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name} {message[0].lower()}{message[1:]}"


UP_NEEDS_NONE = "(`rota up` and commands in its folder do not need it)"
HOW_TO_SET = {
    "DATABASE_URL": f"expected postgresql://user:password@host:5432/name {UP_NEEDS_NONE}",
    "REDIS_URL": f"expected redis://host:6379/0 {UP_NEEDS_NONE}; SCHEDULER_MODE=local does not need it either",
}


@cache
def current() -> Settings:
    """Return this process's settings, which are read on first use."""
    return load()
