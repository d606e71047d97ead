"""The base of plugins' tables: it names constraints as PostgreSQL does, and returns times in UTC."""

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Interval, LargeBinary, MetaData, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator, TypeEngine

from core.errors import NaiveTime

#: PostgreSQL's own names, so that constraints without a name in a migration match the models.
NAMING_CONVENTION = {
    "pk": "%(table_name)s_pkey",
    "fk": "%(table_name)s_%(column_0_name)s_fkey",
    "uq": "%(table_name)s_%(column_0_name)s_key",
    "ix": "%(table_name)s_%(column_0_name)s_idx",
    "ck": "%(table_name)s_%(constraint_name)s_check",
}


class Instant(TypeDecorator[datetime]):
    """A ``timestamptz`` that accepts aware times in any zone, and returns them in UTC.

    Raises NaiveTime for a time without a zone, which PostgreSQL would read in the connection's zone.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the value as it is sent to PostgreSQL."""
        if value is not None:
            require_aware(time=value)
        return value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the value as it is read from PostgreSQL."""
        return value if value is None else value.astimezone(UTC)

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """Return the type of the other operand: an interval for a timedelta, otherwise a time."""
        return Interval() if isinstance(value, timedelta) else self


class Tables:
    """A mixin for the declarative base of a plugin's tables::

        class Base(Tables, DeclarativeBase):
            \"""The tables of billing.\"""

    Each base has its own metadata, which names constraints as PostgreSQL does. ``datetime`` is an aware time in UTC,
    ``int`` a bigint, ``str`` a text, ``bytes`` a bytea, ``timedelta`` an interval; ``type_annotation_map`` can change
    this.
    """

    metadata: ClassVar[MetaData]
    type_annotation_map: ClassVar[dict[Any, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        if DeclarativeBase in cls.__bases__:
            cls.metadata = MetaData(naming_convention=NAMING_CONVENTION)
            cls.type_annotation_map = TYPES | cls.__dict__.get("type_annotation_map", {})
        super().__init_subclass__(**options)


TYPES: dict[Any, Any] = {
    bytes: LargeBinary,
    datetime: Instant,
    int: BigInteger,
    str: Text,
    timedelta: Interval,
}


def require_aware(**times: object) -> None:
    """Raise NaiveTime for the first of ``times`` that is not a datetime with a time zone.

    The error contains the name and the value of the time.
    """
    for name, time in times.items():
        if not isinstance(time, datetime) or time.utcoffset() is None:
            raise NaiveTime(f"bad {name}={time!r}; expected a datetime with a time zone, such as UTC")
