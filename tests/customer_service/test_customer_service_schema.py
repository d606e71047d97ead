"""The migrations create the tables of the models, and remove them again."""

from sqlalchemy import inspect

from core.testing import schema_differences, take_back
from plugins.customer_service import CustomerService
from plugins.customer_service.models import Base


def test_the_migrations_and_the_models_agree(engine):
    assert schema_differences(engine, Base.metadata, plugin="customer_service") == []


def test_the_migrations_can_be_taken_back(engine):
    with engine.connect() as connection:
        take_back(connection, CustomerService().register_migrations())
        assert not [name for name in inspect(connection).get_table_names() if name.startswith("customer_service_")]
