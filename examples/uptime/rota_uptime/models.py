"""The plugin's tables; their names begin with the plugin's name."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The plugin's own metadata."""


class Site(Base):
    """A site that is watched."""

    __tablename__ = "uptime_sites"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    url: Mapped[str] = mapped_column(Text, unique=True)
    #: None: not probed yet.
    is_up: Mapped[bool | None]
    #: Since when it has been what it is.
    changed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
