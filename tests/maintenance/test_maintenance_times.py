"""No function takes a time without a zone: PostgreSQL would read it in the connection's zone."""

import pytest
from maintenance_world import NOON

from core import NaiveTime
from plugins.maintenance import refresh_item
from plugins.maintenance.bios import update_bios
from plugins.maintenance.flea_market import delete_stale_items
from plugins.maintenance.response_times import update_response_times
from plugins.maintenance.statistics import update_statistics
from plugins.maintenance.task_files import delete_files_of_completed, delete_files_of_expired
from plugins.maintenance.temp_images import delete_old_images
from plugins.maintenance.time_slots import delete_old_slots

NAIVE = NOON.replace(tzinfo=None)


def test_an_item_is_not_refreshed(world):
    item_id = world.item()

    with pytest.raises(NaiveTime):
        refresh_item(world.session, item_id, NAIVE)


@pytest.mark.parametrize(
    "delete", [delete_files_of_completed, delete_files_of_expired, delete_stale_items, delete_old_images]
)
def test_no_file_is_deleted(world, delete):
    world.item(NOON.replace(year=2020), "a.jpg")

    with world.opened() as root, pytest.raises(NaiveTime):
        delete(world.session, root, NAIVE, checkpoint=world.checkpoint)

    assert len(world.files()) == 1


def test_nor_a_slot(world):
    with pytest.raises(NaiveTime):
        delete_old_slots(world.session, NAIVE, retention=NOON - NOON, checkpoint=world.checkpoint)


@pytest.mark.parametrize("update", [update_statistics, update_bios, update_response_times])
def test_no_figures_are_computed(world, update):
    with pytest.raises(NaiveTime):
        update(world.session, NAIVE, checkpoint=world.checkpoint)
