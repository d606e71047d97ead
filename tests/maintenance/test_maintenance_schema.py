"""The migration creates the tables of the models and removes them again, and each query of a sweep has an index."""

import pytest
from maintenance_world import NOON
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from core.testing import schema_differences, take_back
from plugins.maintenance import Maintenance
from plugins.maintenance.models import Base, Review, Task

OURS = "maintenance_"


def test_the_migrations_and_the_models_agree(engine):
    assert schema_differences(engine, Base.metadata, plugin="maintenance") == []


def test_every_trigger_and_function_carries_the_name_of_the_plugin(engine):
    with engine.connect() as connection:
        triggers = connection.execute(text("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")).scalars().all()
        functions = connection.execute(
            text("SELECT proname FROM pg_proc JOIN pg_trigger ON tgfoid = pg_proc.oid WHERE NOT tgisinternal")
        ).scalars()
    assert len([name for name in triggers if name.startswith(OURS)]) == 8
    assert len([name for name in functions if name.startswith(OURS)]) == 8


def test_the_migrations_can_be_taken_back(engine):
    with engine.connect() as connection:
        take_back(connection, Maintenance().register_migrations())
        assert not any(name.startswith(OURS) for name in inspect(connection).get_table_names())
        left = connection.execute(text("SELECT count(*) FROM pg_proc WHERE proname LIKE 'maintenance\\_%'"))
        assert left.scalar() == 0


@pytest.mark.parametrize(
    "values",
    [
        {"state": "lost"},
        {"state": "completed"},
        {"state": "open", "completed_at": NOON},
        {"state": "cancelled"},
        {"files_deleted_at": NOON},
    ],
    ids=str,
)
def test_a_task_that_breaks_the_rules_is_refused(world, values):
    with pytest.raises(IntegrityError):
        world.add(Task, poster_id="ann", **values)


def test_a_rating_that_is_none_is_refused(world):
    with pytest.raises(IntegrityError):
        world.add(Review, task_id=world.task(), user_id="zoe", rating=6)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("tasks WHERE state = 'completed' AND files_deletion_began_at IS NULL AND completed_at < now()", "completed"),
        ("tasks WHERE state = 'cancelled' AND files_deletion_began_at IS NULL AND cancelled_at < now()", "cancelled"),
        (
            "tasks WHERE state IN ('open', 'taken') AND files_deletion_began_at IS NULL AND deadline_at < now()",
            "past_deadline",
        ),
        ("tasks WHERE files_deletion_began_at IS NOT NULL AND files_deleted_at IS NULL", "files_going"),
        ("flea_market_items WHERE deletion_began_at IS NULL AND refreshed_at < now()", "stale"),
        ("flea_market_items WHERE deletion_began_at IS NOT NULL", "going"),
        ("time_slots WHERE ends_at < now()", "old"),
        ("task_experts WHERE is_featured AND id > 'a'", "featured"),
    ],
)
def test_a_sweep_reads_an_index_of_what_may_be_due(engine, query, index):
    with engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        plan = connection.execute(text(f"EXPLAIN SELECT id FROM {OURS}{query}")).scalars().all()

    table = query.partition(" ")[0]
    assert f"{OURS}{table}_{index}" in "\n".join(plan)
