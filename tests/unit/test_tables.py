"""The base of plugins' tables."""

from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, Integer, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core import Instant, Tables


class Shop(Tables, DeclarativeBase):
    """The tables of one plugin."""


class Mail(Tables, DeclarativeBase):
    """The tables of another plugin, with a type of its own."""

    type_annotation_map: ClassVar = {int: Integer}


class Sale(Shop):
    __tablename__ = "shop_sales"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(unique=True)
    sold_at: Mapped[datetime] = mapped_column(index=True)


class Letter(Mail):
    __tablename__ = "mail_letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    sent_at: Mapped[datetime]


def test_each_plugin_has_metadata_of_its_own():
    assert isinstance(Shop.metadata, MetaData)
    assert (set(Shop.metadata.tables), set(Mail.metadata.tables)) == ({"shop_sales"}, {"mail_letters"})


def test_annotations_say_the_types_of_columns():
    columns = Sale.__table__.columns
    assert [type(columns[name].type) for name in ("id", "note", "sold_at")] == [BigInteger, Text, Instant]


def test_a_plugin_may_say_otherwise():
    assert [type(column.type) for column in Letter.__table__.columns] == [Integer, Instant]


def test_constraints_and_indexes_have_the_names_that_postgresql_gives():
    assert {index.name for index in Sale.__table__.indexes} == {"shop_sales_sold_at_idx"}
    assert {constraint.name for constraint in Sale.__table__.constraints} == {"shop_sales_pkey", "shop_sales_note_key"}
