"""Flea-market items that are not refreshed are deleted, with their images."""

from datetime import timedelta

import pytest
from maintenance_world import A_MOMENT, NOON
from sqlalchemy import text
from sqlalchemy.orm import Session

from plugins.maintenance import UploadRootError, refresh_item
from plugins.maintenance.flea_market import delete_stale_items
from plugins.maintenance.models import FleaMarketImage, FleaMarketItem
from tests.support.racing import race

TEN_DAYS = timedelta(days=10)
DUE = NOON + TEN_DAYS + A_MOMENT


def sweep(world, now=DUE, batch=100):
    with world.opened() as root:
        return delete_stale_items(world.session, root, now, checkpoint=world.checkpoint, batch=batch)


def test_after_more_than_ten_days_and_not_at_exactly_ten(world):
    world.item(NOON, "a.jpg", "b.jpg")

    assert sweep(world, NOON + TEN_DAYS) == {"items": 0, "files": 0, "failed": 0}
    assert (world.count(FleaMarketItem), world.count(FleaMarketImage), len(world.files())) == (1, 2, 2)

    assert sweep(world) == {"items": 1, "files": 2, "failed": 0}
    assert (world.count(FleaMarketItem), world.count(FleaMarketImage), len(world.files())) == (0, 0, 0)
    assert sweep(world) == {"items": 0, "files": 0, "failed": 0}


def test_an_item_refreshed_in_time_stays_and_temp_folders_beside_it(world):
    kept = world.item(NOON, "a.jpg")
    world.item(NOON, "b.jpg")
    world.write("flea_market/temp_1/c.jpg")
    assert refresh_item(world.session, kept, NOON + TEN_DAYS)
    world.session.commit()

    assert sweep(world)["items"] == 1
    assert world.files() == {f"flea_market/{kept}/a.jpg", "flea_market/temp_1/c.jpg"}


def test_refreshing_never_goes_back(world):
    item_id = world.item(NOON)
    refresh_item(world.session, item_id, NOON - TEN_DAYS)

    assert world.session.get(FleaMarketItem, item_id).refreshed_at == NOON


def test_an_item_whose_deletion_has_begun_cannot_be_refreshed_and_goes(world):
    item_id = world.item(NOON, "a.jpg", deletion_began_at=NOON)

    assert not refresh_item(world.session, item_id, NOON)
    assert not refresh_item(world.session, 99, NOON)
    assert sweep(world, NOON)["items"] == 1


def test_an_image_row_that_names_a_path_elsewhere_keeps_its_item_and_no_other(world):
    hostile, _fine = world.item(NOON), world.item(NOON, "a.jpg")
    world.add(FleaMarketImage, item_id=hostile, path=b"flea_market/../public/a.jpg")
    outside = world.write("public/a.jpg")

    assert sweep(world) == {"items": 1, "files": 1, "failed": 1}
    assert outside.exists()
    assert world.count(FleaMarketItem) == 1


def test_an_item_that_a_constraint_holds_does_not_keep_the_others(world):
    held, *_others = (world.item(NOON, "a.jpg") for _ in range(5))
    world.session.execute(text("CREATE TABLE orders (item_id bigint REFERENCES maintenance_flea_market_items)"))
    world.session.execute(text("INSERT INTO orders VALUES (:id)"), {"id": held})
    world.session.commit()

    try:
        assert sweep(world) == {"items": 4, "files": 5, "failed": 1}
        assert world.get(FleaMarketItem, held).deletion_began_at == DUE, "its images are gone, and it says so"
    finally:
        world.session.rollback()
        world.session.execute(text("DROP TABLE orders"))
        world.session.commit()


def test_an_empty_root_is_refused_while_rows_say_that_there_are_images(world):
    item_id = world.item(NOON)
    world.add(FleaMarketImage, item_id=item_id, path=b"flea_market/%d/a.jpg" % item_id)

    with pytest.raises(UploadRootError, match="its volume may not be mounted"):
        sweep(world)

    assert world.count(FleaMarketImage) == 1


def test_four_sweeps_at_once_delete_each_item_once(world, engine):
    for _ in range(40):
        world.item(NOON, "a.jpg")

    def one():
        with Session(engine) as own, world.opened() as root:
            return delete_stale_items(own, root, DUE, checkpoint=lambda _: own.commit(), batch=3)

    done = race(one, one, one, one)

    assert {what: sum(counts[what] for counts in done) for what in done[0]} == {"items": 40, "files": 40, "failed": 0}


@pytest.mark.parametrize("year", ["9999-12-31", "infinity"])
def test_an_item_of_the_far_future_stays(world, year):
    world.item(NOON)
    world.session.execute(text(f"UPDATE maintenance_flea_market_items SET refreshed_at = '{year}'"))
    world.session.commit()

    assert sweep(world)["items"] == 0
