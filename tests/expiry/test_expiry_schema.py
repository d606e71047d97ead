"""The migration makes what the models say, and takes it away again."""

import importlib

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import inspect, text

from plugins.expiry.models import Base

OURS = "expiry_"
DEFINITIONS = text("""
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid::regclass::text LIKE 'expiry\\_%'
    UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes WHERE tablename LIKE 'expiry\\_%'
""")


def test_the_migration_and_the_models_agree(database):
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_ours, "compare_type": True})

        assert compare_metadata(context, Base.metadata) == []


def test_the_checks_and_indexes_of_the_migration_are_those_of_the_models(database):
    with database.connect() as connection, connection.begin() as transaction:
        migrated = set(connection.execute(DEFINITIONS).all())
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        declared = set(connection.execute(DEFINITIONS).all())
        transaction.rollback()

    assert migrated == declared


def test_every_table_and_index_carries_the_name_of_the_plugin(database):
    for table in Base.metadata.tables.values():
        assert table.name.startswith(OURS)
        assert all(index["name"].startswith(OURS) for index in inspect(database).get_indexes(table.name))


def test_the_migration_can_be_taken_back(database):
    revision = importlib.import_module("plugins.expiry.migrations.0001_what_ends")

    with database.connect() as connection, connection.begin() as transaction:
        with Operations.context(MigrationContext.configure(connection)):
            revision.downgrade()
        assert not any(name.startswith(OURS) for name in inspect(connection).get_table_names())
        transaction.rollback()


def is_ours(_object, name, kind, _reflected, _compared):
    return kind != "table" or name.startswith(OURS)
