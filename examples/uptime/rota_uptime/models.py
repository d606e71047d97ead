"""The plugin's tables; their names begin with the plugin's name."""

from datetime import datetime

from sqlalchemy import Identity
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core import Tables


class Base(Tables, DeclarativeBase):
    """The plugin's own metadata."""


class Site(Base):
    """A site that is watched."""

    __tablename__ = "uptime_sites"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    url: Mapped[str] = mapped_column(unique=True)
    #: None before the first probe.
    is_up: Mapped[bool | None]
    #: The time of the last change.
    changed_at: Mapped[datetime | None]
