"""The migrations create the tables of the models, and remove them again."""

from sqlalchemy import inspect

from core.testing import schema_differences, take_back
from plugins.invites import Invites
from plugins.invites.models import Base


def test_the_migrations_and_the_models_agree(database):
    assert schema_differences(database, Base.metadata, plugin="invites") == []


def test_the_migrations_can_be_taken_back(database):
    with database.connect() as connection:
        take_back(connection, Invites().register_migrations())
        assert not [name for name in inspect(connection).get_table_names() if name.startswith("invites_")]
