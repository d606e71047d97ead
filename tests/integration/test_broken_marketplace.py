"""A marketplace with a bad row of every kind in every table: all other rows are processed, and each bad row is logged
once per run.
"""

import errno
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from core.testing import RunJob
from plugins.expiry import jobs as expiry
from plugins.maintenance import jobs as maintenance
from plugins.maintenance.settings import MaintenanceSettings
from plugins.maintenance.upload_mark import MARK
from tests.support.emitted import emitted

#: The name of an image that cannot be deleted.
HELD = "held"
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)

#: Constraints that an older system did not have.
OLD_SYSTEM = """
    SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) FROM pg_constraint
    WHERE contype IN ('c', 'f') AND conrelid::regclass::text ~ '^(expiry|maintenance)_'
      AND conname <> 'expiry_point_balances_points_check'
    UNION ALL
    SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', attrelid::regclass, attname) FROM pg_attribute
    WHERE attname IN ('deadline_at', 'ends_at', 'expires_at', 'remaining', 'owner_id', 'rating', 'asked_at')
      AND attrelid IN ('expiry_tasks'::regclass, 'expiry_coupons'::regclass, 'expiry_invitation_codes'::regclass,
                       'expiry_point_lots'::regclass, 'maintenance_reviews'::regclass,
                       'maintenance_expert_inquiries'::regclass)
"""
#: Good rows have the ids 1 to 5, and bad rows have ids from 11. A trigger refuses the row 20, or the row called
#: ``refused``. Tasks whose files are deleted because the tasks are cancelled or overdue have ids that are larger by
#: 100.
MARKETPLACE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF to_jsonb(old) ->> TG_ARGV[1] IN (TG_ARGV[0], '1' || TG_ARGV[0]) THEN RAISE 'somebody''s secret'; END IF;
        RETURN new;
    END $$;
    CREATE TABLE too_long AS SELECT string_agg(md5(i::text), '') AS id FROM generate_series(1, 999) AS i;

    INSERT INTO expiry_tasks (id, owner_id, opened_at, deadline_at) OVERRIDING SYSTEM VALUE
    SELECT n, 'ann', '2025-01-01', '2026-01-01' FROM unnest(ARRAY[1, 2, 3, 4, 5, 11, 12, 13, 20]) AS n;
    UPDATE expiry_tasks SET owner_id = NULL WHERE id = 11;
    UPDATE expiry_tasks SET owner_id = too_long.id FROM too_long WHERE expiry_tasks.id = 12;
    UPDATE expiry_tasks SET deadline_at = NULL WHERE id = 13;
    UPDATE expiry_tasks SET deadline_at = '-infinity' WHERE id = 3;

    INSERT INTO expiry_coupons (id, code, user_id, ends_at) OVERRIDING SYSTEM VALUE
    SELECT n, n::text, 'ann', '2026-01-01' FROM unnest(ARRAY[1, 2, 3, 4, 5, 11, 20]) AS n;
    UPDATE expiry_coupons SET ends_at = NULL WHERE id = 11;
    UPDATE expiry_coupons SET ends_at = '4000-01-01 BC' WHERE id = 2;
    INSERT INTO expiry_invitation_codes (id, code, user_id, ends_at) OVERRIDING SYSTEM VALUE
    SELECT id, code, user_id, ends_at FROM expiry_coupons;

    INSERT INTO expiry_point_balances SELECT n, 7 FROM unnest(ARRAY[1, 2, 3, 4, 5, 11, 12, 13, 14, 20, 21]) AS n;
    INSERT INTO expiry_point_lots (id, user_id, points, remaining, granted_at, expires_at) OVERRIDING SYSTEM VALUE
    SELECT user_id::int, user_id, 7, 7, '2025-01-01', '2026-01-01' FROM expiry_point_balances;
    UPDATE expiry_point_balances SET points = 6 WHERE user_id = '11';
    UPDATE expiry_point_lots SET remaining = NULL WHERE id = 12;
    UPDATE expiry_point_lots SET remaining = -7 WHERE id = 13;
    UPDATE expiry_point_lots SET expires_at = NULL WHERE id = 14;
    UPDATE expiry_point_lots SET remaining = 9223372036854775807 WHERE id = 21;

    INSERT INTO maintenance_tasks (id, poster_id, state, completed_at) OVERRIDING SYSTEM VALUE
    SELECT n, 'ann', 'completed', '2026-01-01' FROM unnest(ARRAY[1, 2, 3, 4, 5, 11, 12, 20]) AS n;
    UPDATE maintenance_tasks SET completed_at = '-infinity' WHERE id = 4;
    INSERT INTO maintenance_tasks (id, poster_id, state, cancelled_at) OVERRIDING SYSTEM VALUE
    SELECT n, 'ann', 'cancelled', '2026-01-01' FROM unnest(ARRAY[101, 102, 111, 112, 120]) AS n;
    INSERT INTO maintenance_tasks (id, poster_id, state, deadline_at) OVERRIDING SYSTEM VALUE
    SELECT n, 'ann', 'open', '2026-01-01' FROM unnest(ARRAY[103, 104, 105]) AS n;
    UPDATE maintenance_tasks SET cancelled_at = '-infinity' WHERE id = 102;
    UPDATE maintenance_tasks SET deadline_at = '4000-01-01 BC' WHERE id = 104;
    INSERT INTO maintenance_task_files SELECT id, format('private/tasks/%s/a.pdf', id)::bytea FROM maintenance_tasks;
    INSERT INTO maintenance_task_files VALUES (11, '../../etc/passwd'), (111, 'public/images/public/1'), (99, 'a.jpg');
    CREATE TABLE contracts (task_id bigint, path bytea, FOREIGN KEY (task_id, path) REFERENCES maintenance_task_files);
    INSERT INTO contracts VALUES (112, 'private/tasks/112/a.pdf');

    INSERT INTO maintenance_flea_market_items (id, seller_id, refreshed_at) OVERRIDING SYSTEM VALUE
    SELECT n, 'ann', '2025-01-01' FROM unnest(ARRAY[1, 2, 3, 4, 5, 11, 12, 13, 20]) AS n;
    UPDATE maintenance_flea_market_items SET refreshed_at = '-infinity' WHERE id = 4;
    CREATE TABLE offers (item_id bigint REFERENCES maintenance_flea_market_items DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO offers VALUES (11);
    INSERT INTO maintenance_flea_market_images
    SELECT id, format('flea_market/%s/a.jpg', id)::bytea FROM maintenance_flea_market_items;
    INSERT INTO maintenance_flea_market_images VALUES (12, 'flea_market/1/b.jpg'), (99, 'flea_market/99/a.jpg');
    CREATE TABLE covers (item_id bigint, path bytea, FOREIGN KEY (item_id, path)
        REFERENCES maintenance_flea_market_images);
    INSERT INTO covers VALUES (13, 'flea_market/13/a.jpg');
    INSERT INTO maintenance_bookmarks VALUES ('temp_images', '[0, [["", 1e999, 0]]]');

    INSERT INTO maintenance_time_slots (id, expert_id, starts_at, ends_at) OVERRIDING SYSTEM VALUE
    SELECT n, 'zoe', '2025-01-01', '2025-01-01' FROM unnest(ARRAY[1, 2, 3, 4, 5, 11]) AS n;
    UPDATE maintenance_time_slots SET ends_at = '-infinity' WHERE id = 4;
    CREATE TABLE bookings (slot_id bigint REFERENCES maintenance_time_slots);
    INSERT INTO bookings VALUES (11);

    INSERT INTO maintenance_user_statistics (user_id, updated_at) VALUES ('refused', '2025-01-01');
    INSERT INTO maintenance_changed_users (user_id) SELECT id FROM too_long;
    INSERT INTO maintenance_changed_users (user_id) VALUES ('ann'), ('refused'), ('bob'), ('refused');
    INSERT INTO maintenance_tasks (id, poster_id) OVERRIDING SYSTEM VALUE VALUES (50, 'refused');
    INSERT INTO maintenance_reviews (task_id, user_id, rating) VALUES
        (1, 'bob', 5), (1, 'bob', NULL), (1, 'bob', 0), (99, 'cat', 4), (1, 'overrated', 32767);

    INSERT INTO maintenance_task_experts (id, name, is_featured)
    SELECT n, n, true FROM unnest(ARRAY['', 'ann', 'bob', 'refused', 'slow', 'slowest']) AS n;
    INSERT INTO maintenance_task_experts (id, name, average_response_time) VALUES ('late', 'late', '9000000 years');
    INSERT INTO maintenance_expert_inquiries (expert_id, asked_at, answered_at)
    SELECT id, '2026-01-01 12:00', '2026-01-01 12:30' FROM maintenance_task_experts;
    INSERT INTO maintenance_expert_inquiries (expert_id, asked_at, answered_at) VALUES
        ('bob', NULL, '2026-01-01'), ('bob', '2026-01-02', '2026-01-01'), ('bob', '-infinity', '2026-01-01'),
        ('nobody', '2026-01-01', '2026-01-02'), ('slow', '2026-01-01', '290000-01-01');
    INSERT INTO maintenance_expert_inquiries (expert_id, asked_at, answered_at)
    SELECT 'slowest', '2026-01-01', '290000-01-01' FROM generate_series(1, 30);
"""
REFUSED = {
    "expiry_tasks": ("20", "id"),
    "expiry_coupons": ("20", "id"),
    "expiry_invitation_codes": ("20", "id"),
    "expiry_point_lots": ("20", "id"),
    "maintenance_tasks": ("20", "id"),
    "maintenance_flea_market_items": ("20", "id"),
    "maintenance_user_statistics": ("refused", "user_id"),
    "maintenance_task_experts": ("refused", "id"),
}
#: For each job the counts of its first and its second run, and the rows that the log names.
JOBS = [
    (
        expiry.cancel_expired_tasks,
        {"cancelled": 5, "left": 0, "broken": 4},
        {"cancelled": 0, "left": 0, "broken": 4},
        {"11", "12", "13", "20"},
    ),
    (
        expiry.check_expired_coupons,
        {"expired": 5, "left": 0, "broken": 2},
        {"expired": 0, "left": 0, "broken": 2},
        {"11", "20"},
    ),
    (
        expiry.check_expired_invitation_codes,
        {"expired": 5, "left": 0, "broken": 2},
        {"expired": 0, "left": 0, "broken": 2},
        {"11", "20"},
    ),
    (
        expiry.check_expired_points,
        {"expired": 5, "points": 35, "left": 0, "broken": 6},
        {"expired": 0, "points": 0, "left": 0, "broken": 6},
        {"11", "12", "13", "14", "20", "21"},
    ),
    (
        maintenance.cleanup_completed_task_files,
        {"tasks": 6, "files": 7, "failed": 2},
        {"tasks": 0, "files": 0, "failed": 2},
        {"11", "20"},
    ),
    (
        maintenance.cleanup_expired_task_files,
        {"tasks": 5, "files": 7, "failed": 4},
        {"tasks": 0, "files": 0, "failed": 4},
        {"11", "111", "112", "120"},
    ),
    (
        maintenance.cleanup_unused_temp_images,
        {"deleted": 4, "folders": 0, "entries": 34, "failed": 1},
        {"deleted": 0, "folders": 0, "entries": 15, "failed": 1},
        {"flea_market/temp_11"},
    ),
    (
        maintenance.cleanup_expired_flea_market_items,
        {"items": 5, "files": 8, "failed": 4},
        {"items": 0, "files": 0, "failed": 4},
        {"11", "12", "13", "20"},
    ),
    (
        maintenance.cleanup_expired_time_slots,
        {"deleted": 5, "kept": 0, "failed": 1},
        {"deleted": 0, "kept": 0, "failed": 1},
        {"11"},
    ),
    (
        maintenance.update_all_users_statistics,
        {"users": 3, "failed": 3},
        {"users": 0, "failed": 3},
        {"refused", "overrated", "TOO LONG"},
    ),
    (
        maintenance.update_featured_task_experts_response_time,
        {"experts": 4, "failed": 2},
        {"experts": 4, "failed": 2},
        {"refused", "slowest"},
    ),
    (
        maintenance.update_task_experts_bio,
        {"experts": 5, "changed": 5, "failed": 2},
        {"experts": 5, "changed": 0, "failed": 2},
        {"refused", "late"},
    ),
]


@pytest.fixture
def too_long(database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Fill the marketplace. Yield the name of a user that is too long for an index."""
    with database.begin() as connection:
        for statement in connection.execute(text(OLD_SYSTEM)).scalars().all():
            connection.exec_driver_sql(statement)
        connection.execute(text(MARKETPLACE))
        for table, (value, column) in REFUSED.items():
            call = f"refuse({value!r}, {column!r})"
            connection.exec_driver_sql(
                f"CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {call}"
            )
        name = connection.execute(text("SELECT id FROM too_long")).scalar_one()
    upload(tmp_path, monkeypatch)
    monkeypatch.setenv("ROTA_MAINTENANCE_UPLOAD_ROOT", str(tmp_path))
    MaintenanceSettings.forget()
    yield name
    MaintenanceSettings.forget()


def upload(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create the files of the rows, and unused images, one of which cannot be deleted."""
    tasks = [f"private/tasks/{n + more}/a.pdf" for n in (1, 2, 3, 4, 5, 11, 12, 20) for more in (0, 100)]
    items = [f"flea_market/{n}/a.jpg" for n in (1, 2, 3, 4, 5, 11, 12, 13, 20)]
    unused = [f"flea_market/temp_{n}.jpg" for n in ("1/a", "2/a", "11/a", "11/b", f"11/{HELD}")]
    others = [f"flea_market/temp_{n}/notes.txt" for n in (1, 2)]
    for path in [*tasks, *items, *unused, *others]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
        os.utime(root / path, (0, 0))
    unlink = os.unlink

    def refuse(path: Any, **options: Any) -> None:
        if path == f"{HELD}.jpg":
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)


def named(caplog) -> list[str]:
    refused = [event.ids for event in emitted(caplog, "sweep.rows_refused")]
    files = re.findall(r"(?:files.refused (?:task|item)|temp_images.not_deleted folder)='?([\w/]+)", caplog.text)
    return [each for ids in [*refused, *files] for each in ids.split(", ")]


@pytest.mark.slow
def test_all_else_goes_on_and_each_bad_row_is_named_once_per_run(too_long: str, run_job: RunJob, tmp_path, caplog):
    for job, first, second, bad in JOBS:
        for expected in (first, second):
            caplog.clear()
            run = run_job(job, now=NOON)

            assert (run.state, run.result) == ("succeeded", expected), (job.name, run.error)
            assert sorted(named(caplog)) == sorted(too_long if each == "TOO LONG" else each for each in bad), job.name
            assert "secret" not in caplog.text
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.name != MARK} == {
        "private/tasks/20/a.pdf",
        "private/tasks/120/a.pdf",
        "flea_market/20/a.jpg",
        "flea_market/temp_1/notes.txt",
        "flea_market/temp_2/notes.txt",
        f"flea_market/temp_11/{HELD}.jpg",
    }, "announced rows' files went, refused ones' not"
