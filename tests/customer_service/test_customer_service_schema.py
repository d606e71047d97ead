"""The migration makes what the models say, and takes it away again."""

import importlib
import re

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import CheckConstraint, inspect

from plugins.customer_service.models import Base

OURS = "customer_service_"


def test_the_migration_and_the_models_agree(engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_ours, "compare_type": True})

        assert compare_metadata(context, Base.metadata) == []


def test_the_checks_of_the_migration_and_of_the_models_have_the_same_names(engine):
    made = {
        name: {check["name"] for check in inspect(engine).get_check_constraints(name)} for name in Base.metadata.tables
    }

    assert made == {
        name: {check.name for check in table.constraints if isinstance(check, CheckConstraint)}
        for name, table in Base.metadata.tables.items()
    }


def test_every_table_and_index_carries_the_name_of_the_plugin(engine):
    for table in Base.metadata.tables.values():
        assert re.match(OURS, table.name)
        assert all(re.match(OURS, index["name"]) for index in inspect(engine).get_indexes(table.name))


def test_the_migration_can_be_taken_back(engine):
    revision = importlib.import_module("plugins.customer_service.migrations.0001_queue_and_chats")

    with engine.connect() as connection, connection.begin() as transaction:
        with Operations.context(MigrationContext.configure(connection)):
            revision.downgrade()
        assert not any(name.startswith(OURS) for name in inspect(connection).get_table_names())
        transaction.rollback()


def is_ours(_object, name, kind, _reflected, _compared):
    return kind != "table" or name.startswith(OURS)
