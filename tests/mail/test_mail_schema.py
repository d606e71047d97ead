"""The migrations create the tables of the models, and remove them again."""

from sqlalchemy import inspect

from core.testing import schema_differences, take_back
from plugins.mail import Mail
from plugins.mail.models import Base


def test_the_migrations_and_the_models_agree(database):
    assert schema_differences(database, Base.metadata, plugin="mail") == []


def test_the_migrations_can_be_taken_back(database):
    with database.connect() as connection:
        take_back(connection, Mail().register_migrations())
        assert not [name for name in inspect(connection).get_table_names() if name.startswith("mail_")]
