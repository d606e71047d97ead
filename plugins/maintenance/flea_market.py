"""Flea-market items. They are kept while their sellers refresh them, and then deleted with their images.

The images of item 7 are in ``flea_market/7``, which is the item's own folder. ``file_journal.py`` keeps rows and files
consistent.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, literal, update
from sqlalchemy.orm import Session

from core import Checkpoint, Instant
from plugins.maintenance.file_journal import Deletion, Journal
from plugins.maintenance.models import FleaMarketImage, FleaMarketItem

#: An item is deleted when it has not been refreshed for longer than this.
KEPT = timedelta(days=10)

UNSYNCHRONISED = {"synchronize_session": False}


def refresh_item(session: Session, item_id: int, now: datetime) -> bool:
    """Keep the item for another ten days. Return False if it does not exist, or if its deletion has begun."""
    refreshed = (
        update(FleaMarketItem)
        .where(FleaMarketItem.id == item_id, FleaMarketItem.deletion_began_at.is_(None))
        .values(
            refreshed_at=func.greatest(FleaMarketItem.refreshed_at, literal(now, Instant))
        )  # the clocks of two hosts may differ
        .returning(FleaMarketItem.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(refreshed) is not None


def delete_stale_items(
    session: Session, root: int, now: datetime, *, checkpoint: Checkpoint, batch: int = 100
) -> dict[str, int]:
    """Delete items that were not refreshed for more than 10 days, with their images.

    Return the numbers of items, files and failures.
    """
    due = [(FleaMarketItem.refreshed_at < now - KEPT, FleaMarketItem.refreshed_at)]
    return Deletion(session, root, JOURNAL, due, now, checkpoint, batch).run()


def _remove_rows(session: Session, item_ids: Sequence[int], _now: datetime) -> None:
    images = delete(FleaMarketImage).where(FleaMarketImage.item_id.in_(item_ids))
    session.execute(images, execution_options=UNSYNCHRONISED)
    items = delete(FleaMarketItem).where(FleaMarketItem.id.in_(item_ids))
    session.execute(items, execution_options=UNSYNCHRONISED)


JOURNAL = Journal(
    noun="item",
    owner_id=FleaMarketItem.id,
    began_at=FleaMarketItem.deletion_began_at,
    is_going=FleaMarketItem.deletion_began_at.is_not(None),
    file_owner_id=FleaMarketImage.item_id,
    file_path=FleaMarketImage.path,
    parents=[("flea_market",)],
    record=_remove_rows,
)
