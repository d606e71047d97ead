"""The sweeps of expiry and maintenance for crash tests: work for several batches, and how to check the outcome.

Rows, files and keys that a sweep must process have names with ``due``. Rows, files and keys that it must not touch have
names with ``kept``. So the number of names with ``due`` shows how much is left.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from plugins.expiry.models import Base as ExpiryBase
from plugins.maintenance.models import Base as MaintenanceBase
from tests.expiry.expiry_world import check_points, grant_in_bulk
from tests.maintenance.maintenance_world import World
from tests.support.eventually import eventually
from tests.support.fleet import Fleet

WORKERS = 4
TABLES = ", ".join([*ExpiryBase.metadata.tables, *MaintenanceBase.metadata.tables])
#: The number of temporary images that one run deletes.
IMAGES_PER_RUN = 50

#: The place where a worker waits by default: in its second batch, which is done but not committed.
AT_SECOND_CHECKPOINT = "BEFORE UPDATE OF progress ON rota_runs FOR EACH ROW WHEN (OLD.progress IS NOT NULL)"
#: The key of the advisory lock for which each transaction waits at the gate.
GATE = 14
MAKE_GATE = f"""
    CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared({GATE});
        RETURN COALESCE(NEW, OLD);
    END $$;
    CREATE TRIGGER gate %s EXECUTE FUNCTION wait_at_gate();
"""
WAITING = """
    SELECT DISTINCT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'
"""
CONNECTED = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, 'rota:')
"""
NOTHING = "SELECT WHERE false"


def is_upload(path: str, name: str) -> bool:
    """Return whether ``path`` is an upload whose name begins with ``name``."""
    base = os.path.basename(path)
    return base.startswith(name) and base != ".rota-upload-root"


@dataclass
class Scene:
    """Four workers, and the database, the folder and the Redis with their work."""

    fleet: Fleet
    root: Path
    workers: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.world = World(Session(self.fleet.engine), self.root)

    def empty(self) -> None:
        """Delete all rows and files of earlier sweeps."""
        self.do(f"TRUNCATE {TABLES} RESTART IDENTITY CASCADE")
        shutil.rmtree(self.root)
        self.root.mkdir()

    def staff(self) -> None:
        """Start the four workers, each a process with one thread, unless they are running."""
        if self.workers is None:
            queues = ["--queues", "expiry", "maintenance"]
            self.workers = self.fleet.worker(*queues, processes=WORKERS, threads=1)

    def kill(self) -> None:
        """Kill all workers with SIGKILL."""
        assert self.workers is not None
        self.fleet.kill(self.workers)
        self.workers = None

    @contextmanager
    def gate(self, place: str) -> Iterator[None]:
        """Hold each transaction that fires a trigger at ``place``, until the block ends."""
        self.do(MAKE_GATE % place)
        try:
            with self.fleet.engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(:gate)"), {"gate": GATE})
                yield
        finally:
            self.do("DROP FUNCTION wait_at_gate CASCADE")

    def wait_until_held(self, workers: int) -> None:
        """Wait until this many processes wait at the gate."""
        eventually(lambda: len(self.fleet.rows(WAITING)) == workers, within=30)

    def wait_until_disconnected(self) -> None:
        """Wait until PostgreSQL has closed the connections of the killed workers, and rolled back their
        transactions.
        """
        eventually(lambda: not self.fleet.rows(CONNECTED), within=10)

    def do(self, *statements: str) -> None:
        """Execute statements, and commit."""
        with self.fleet.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement.replace("%", "%%"))

    def write(self, query: str) -> None:
        """Write the files whose paths a query returns."""
        for row in self.fleet.rows(query):
            self.world.write(row.path)

    def files(self, name: str = "") -> set[str]:
        """Return the uploads whose names begin with ``name``."""
        found = {os.path.join(folder, file) for folder, _, files in os.walk(self.root) for file in files}
        return {os.path.relpath(path, self.root) for path in found if is_upload(path, name)}

    def keys(self, name: str) -> dict[str, str | None]:
        """Return the strings in Redis with such a name, and their values."""
        names = sorted(self.fleet.redis.scan_iter(f"*:{name}*", count=1000))
        return dict(zip(names, self.fleet.redis.mget(names) if names else [], strict=True))

    def members(self, name: str) -> set[tuple[str, str]]:
        """Return the members with such a name in the users' sets of sessions."""
        sets = self.fleet.redis.scan_iter("user_sessions:*", count=1000)
        found = {(user, member) for user in sets for member in self.fleet.redis.smembers(user)}
        return {(user, member) for user, member in found if member.startswith(name)}


def nothing(_scene: Scene) -> Sequence[Any]:
    """Return nothing, for a sweep that has nothing to check."""
    return []


@dataclass(frozen=True)
class Sweep:
    """A job's work, and how to check its outcome."""

    fill: Callable[[Scene], None]
    #: A query for the rows that are left to process.
    due: str = NOTHING
    #: A query for the rows that must not change.
    kept: str = NOTHING
    #: A query for the rows that the sweep has processed wrongly.
    wrong: str = NOTHING
    #: Returns what must not be visible between two transactions.
    torn: Callable[[Scene], Sequence[Any]] = nothing
    gate: str = AT_SECOND_CHECKPOINT
    #: The counts in a run's result that together equal the processed rows, files and keys; empty if a run may process
    #: one twice.
    counts: tuple[str, ...] = ()

    def left(self, scene: Scene) -> int:
        """Return how much is left to process."""
        (rows,) = scene.fleet.rows(f"SELECT count(*) AS due FROM ({self.due}) AS due")
        return rows.due + len(scene.files("due")) + len(scene.keys("due")) + len(scene.members("due"))

    def untouched(self, scene: Scene) -> tuple[Any, ...]:
        """Return all that must not change."""
        return scene.fleet.rows(self.kept), scene.files("kept"), scene.keys("kept"), scene.members("kept")


def rows(*statements: str) -> Callable[[Scene], None]:
    """Return a function that fills the database."""
    return lambda scene: scene.do(*statements)


TASKS = Sweep(
    fill=rows("""
        INSERT INTO expiry_tasks (owner_id, state, opened_at, deadline_at, completed_at)
        SELECT 'due', 'open', now() - interval '9 days', now() - n * interval '1 second', NULL::timestamptz
        FROM generate_series(1, 3500) AS n
        UNION ALL SELECT 'kept', 'open', now(), now() + interval '1 day', NULL FROM generate_series(1, 50)
        UNION ALL SELECT 'kept', 'completed', now(), now() - interval '1 day', now() FROM generate_series(1, 50)
    """),
    due="SELECT id FROM expiry_tasks WHERE owner_id = 'due' AND state = 'open'",
    kept="SELECT ctid::text, * FROM expiry_tasks WHERE owner_id = 'kept' ORDER BY id",
    wrong="""
        SELECT task.id FROM expiry_tasks AS task LEFT JOIN expiry_notifications AS told ON told.task_id = task.id
        GROUP BY task.id HAVING count(told.id) <> CASE task.owner_id WHEN 'due' THEN 1 ELSE 0 END
            OR (task.cancel_reason IS NOT DISTINCT FROM 'deadline_passed') <> (task.owner_id = 'due')
    """,
    gate="AFTER INSERT ON expiry_notifications FOR EACH ROW WHEN (NEW.task_id > 1000)",
    counts=("cancelled",),
)


def codes(table: str) -> Sweep:
    """Return the sweep of coupons or of invitation codes."""
    return Sweep(
        fill=rows(f"""
            INSERT INTO {table} (code, user_id, state, ends_at, used_at)
            SELECT 'due-' || n, 'due', 'active', now() - n * interval '1 second', NULL::timestamptz
            FROM generate_series(1, 55000) AS n
            UNION ALL SELECT 'kept-' || n, 'kept', 'active', now() + interval '1 day', NULL
            FROM generate_series(1, 50) AS n
            UNION ALL SELECT 'used-' || n, 'kept', 'used', now(), now() FROM generate_series(1, 50) AS n
        """),
        due=f"SELECT id FROM {table} WHERE user_id = 'due' AND state = 'active'",
        kept=f"SELECT ctid::text, * FROM {table} WHERE user_id = 'kept' ORDER BY id",
        wrong=f"SELECT id FROM {table} WHERE user_id = 'due' AND state <> 'expired'",
        gate=f"AFTER UPDATE ON {table} FOR EACH ROW WHEN (OLD.id > 10000)",
        counts=("expired",),
    )


def grant_points(scene: Scene) -> None:
    """Insert lots of points, of which nine of ten are due. Each user has due lots and other lots."""
    with scene.fleet.engine.begin() as connection:
        grant_in_bulk(connection, lots=8000, users=160)
    scene.do("UPDATE expiry_point_lots SET expires_at = now() + interval '1 day' WHERE mod(id, 10) = 0")


def wrong_sums(scene: Scene) -> Sequence[Any]:
    """Return the users and lots whose sums do not agree."""
    with scene.fleet.engine.connect() as connection:
        return check_points(connection)


POINTS = Sweep(
    fill=grant_points,
    due="SELECT id FROM expiry_point_lots WHERE mod(id, 10) > 0 AND remaining > 0",
    kept="SELECT ctid::text, * FROM expiry_point_lots WHERE mod(id, 10) = 0 ORDER BY id",
    wrong="""
        SELECT lot.id FROM expiry_point_lots AS lot JOIN expiry_point_entries AS entry ON entry.lot_id = lot.id
        GROUP BY lot.id HAVING array_agg(entry.points ORDER BY entry.id)
            <> CASE WHEN mod(lot.id, 10) = 0 THEN ARRAY[lot.points] ELSE ARRAY[lot.points, -lot.points] END
    """,
    torn=wrong_sums,
    gate="AFTER UPDATE ON expiry_point_lots FOR EACH ROW WHEN (OLD.id > 2000)",
    counts=("expired",),
)

SESSIONS = ("session:", "service_session:shop:", "admin_session:root:")


def store_sessions(scene: Scene) -> None:
    """Store sessions of all three kinds, and users' sets whose members have an active session, an inactive session or
    none.
    """
    with scene.fleet.redis.pipeline(transaction=False) as redis:
        for number in range(3000):
            kind, user = SESSIONS[number % 3], f"user_sessions:user-{number % 300}"
            redis.set(f"{kind}due-{number}", json.dumps({"is_active": False}))
            redis.set(f"session:kept-{number}", json.dumps({"is_active": True}), ex=3600)
            redis.sadd(user, f"due-{number}", f"due-gone-{number}", f"kept-{number}")
        redis.execute()


def store_cache(scene: Scene) -> None:
    """Store entries that were not used for eight days, entries that were used since, and entries with a TTL or without
    a time.
    """
    now = scene.fleet.now()
    used, unused = (json.dumps({"last_used_at": (now - timedelta(days=days)).isoformat()}) for days in (6, 8))
    with scene.fleet.redis.pipeline(transaction=False) as redis:
        for number in range(3000):
            redis.set(f"cache:due-{number}", unused)
            redis.set(f"cache:kept-{number}", used)
        redis.set("cache:kept-with-ttl", unused, ex=3600)
        redis.set("cache:kept-untimed", "{}")
        redis.execute()


#: Queries for the files that rows name, and whether the deletion of these files has not begun.
FILES_OF_TASKS = """
    SELECT convert_from(file.path, 'UTF8') AS path, task.files_deletion_began_at IS NULL AS is_whole
    FROM maintenance_task_files AS file JOIN maintenance_tasks AS task ON task.id = file.task_id
"""
IMAGES_OF_ITEMS = """
    SELECT convert_from(image.path, 'UTF8') AS path, item.deletion_began_at IS NULL AS is_whole
    FROM maintenance_flea_market_images AS image JOIN maintenance_flea_market_items AS item ON item.id = image.item_id
"""


def torn_files(scene: Scene, query: str) -> Sequence[str]:
    """Return files that are missing although their deletion has not begun, and files that no row names any more."""
    found, spoken_of = scene.files(), {row.path: row.is_whole for row in scene.fleet.rows(query)}
    missing = {path for path, is_whole in spoken_of.items() if is_whole} - found
    return sorted(missing | (found - set(spoken_of)))


def task_files(tasks: str) -> Sweep:
    """Return a sweep of the files of tasks. ``tasks`` inserts the tasks; the name of the poster says whether they are
    due.
    """
    fill = f"""
        INSERT INTO maintenance_tasks (poster_id, state, completed_at, cancelled_at, deadline_at) {tasks};
        INSERT INTO maintenance_task_files
        SELECT id, convert_to(format(places[1 + mod(id, 2)], id, poster_id), 'UTF8')
        FROM maintenance_tasks, (SELECT ARRAY['private/tasks/%s/%s', 'public/images/public/%s/%s.jpg']) AS _ (places);
    """

    def fill_both(scene: Scene) -> None:
        scene.do(fill)
        scene.write(FILES_OF_TASKS)

    return Sweep(
        fill=fill_both,
        due="SELECT id FROM maintenance_tasks WHERE poster_id = 'due' AND files_deleted_at IS NULL",
        kept="""
            SELECT task.ctid::text, task.*, file.* FROM maintenance_tasks AS task
            JOIN maintenance_task_files AS file ON file.task_id = task.id WHERE poster_id = 'kept' ORDER BY id, path
        """,
        torn=lambda scene: torn_files(scene, FILES_OF_TASKS),
        gate="""
            AFTER UPDATE ON maintenance_tasks FOR EACH ROW
            WHEN (NEW.files_deleted_at IS NOT NULL AND OLD.id > 200)
        """,
        counts=("tasks", "files"),
    )


COMPLETED_TASKS = task_files("""
    SELECT 'due', 'completed', now() - interval '4 days', NULL::timestamptz, NULL::timestamptz
    FROM generate_series(1, 700)
    UNION ALL SELECT 'kept', 'completed', now() - interval '2 days', NULL, NULL FROM generate_series(1, 50)
    UNION ALL SELECT 'kept', 'cancelled', NULL, now() - interval '4 days', NULL FROM generate_series(1, 50)
    UNION ALL SELECT 'kept', 'taken', NULL, NULL, now() - interval '4 days' FROM generate_series(1, 50)
""")
EXPIRED_TASKS = task_files("""
    SELECT 'due', 'cancelled', NULL::timestamptz, now() - interval '4 days', NULL::timestamptz
    FROM generate_series(1, 300)
    UNION ALL SELECT 'due', 'taken', NULL, NULL, now() - interval '4 days' FROM generate_series(1, 400)
    UNION ALL SELECT 'kept', 'completed', now() - interval '4 days', NULL, NULL FROM generate_series(1, 50)
    UNION ALL SELECT 'kept', 'cancelled', NULL, now() - interval '2 days', NULL FROM generate_series(1, 50)
    UNION ALL SELECT 'kept', 'open', NULL, NULL, now() - interval '2 days' FROM generate_series(1, 50)
""")


def offer_items(scene: Scene) -> None:
    """Insert items that were not refreshed for eleven days, and items that were not for nine. Each has an image."""
    scene.do("""
        INSERT INTO maintenance_flea_market_items (seller_id, refreshed_at)
        SELECT 'due', now() - interval '11 days' FROM generate_series(1, 700)
        UNION ALL SELECT 'kept', now() - interval '9 days' FROM generate_series(1, 50);
        INSERT INTO maintenance_flea_market_images
        SELECT id, convert_to(format('flea_market/%s/%s.jpg', id, seller_id), 'UTF8')
        FROM maintenance_flea_market_items;
    """)
    scene.write(IMAGES_OF_ITEMS)


ITEMS = Sweep(
    fill=offer_items,
    due="SELECT id FROM maintenance_flea_market_items WHERE seller_id = 'due'",
    kept="""
        SELECT item.ctid::text, item.*, image.* FROM maintenance_flea_market_items AS item
        JOIN maintenance_flea_market_images AS image ON image.item_id = item.id WHERE seller_id = 'kept'
        ORDER BY id, path
    """,
    torn=lambda scene: torn_files(scene, IMAGES_OF_ITEMS),
    gate="AFTER DELETE ON maintenance_flea_market_items FOR EACH ROW WHEN (OLD.id > 200)",
    counts=("items", "files"),
)


def upload_images(scene: Scene) -> None:
    """Write old images in temporary folders, and beside them young images, another file, and an image in another
    folder.
    """
    old, young = (scene.fleet.now() - timedelta(hours=hours) for hours in (25, 23))
    write = scene.world.write
    for number in range((WORKERS + 2) * IMAGES_PER_RUN):
        folder = ("public/images/public/temp_ann", "flea_market/temp_bob")[number % 2]
        write(f"{folder}/due-{number}.jpg", modified_at=old)
    for number in range(IMAGES_PER_RUN):
        write(f"flea_market/temp_bob/kept-{number}.jpg", modified_at=young)
    write("flea_market/temp_bob/kept.txt", modified_at=old)
    write("flea_market/7/kept.jpg", modified_at=old)


TIME_SLOTS = Sweep(
    fill=rows("""
        INSERT INTO maintenance_time_slots (expert_id, starts_at, ends_at)
        SELECT CASE WHEN mod(n, 10) = 0 THEN 'kept' ELSE 'due' END, ends_at - interval '1 hour', ends_at
        FROM generate_series(1, 9000) AS n,
             LATERAL (SELECT now() - interval '91 days' - n * interval '1 s') AS _ (ends_at)
        UNION ALL SELECT 'kept', now() - interval '89 days', now() - interval '89 days' FROM generate_series(1, 50);
        INSERT INTO maintenance_tasks (poster_id, state, completed_at, time_slot_id)
        SELECT 'ann', 'completed', now(), id FROM maintenance_time_slots WHERE mod(id, 5) = 0
        UNION ALL SELECT 'ann', 'open', NULL, id FROM maintenance_time_slots WHERE mod(id, 10) = 0;
    """),
    due="SELECT id FROM maintenance_time_slots WHERE expert_id = 'due'",
    kept="""
        SELECT ctid::text, id::text, expert_id FROM maintenance_time_slots WHERE expert_id = 'kept'
        UNION ALL SELECT '', id::text, state FROM maintenance_tasks ORDER BY 1, 2
    """,
    wrong="SELECT id FROM maintenance_tasks WHERE state = 'open' AND time_slot_id IS NULL",
    counts=("deleted",),
)

STATISTICS = Sweep(
    fill=rows("""
        INSERT INTO maintenance_user_statistics (user_id, tasks_posted, updated_at)
        SELECT 'kept-' || n, 99, now() FROM generate_series(1, 50) AS n;
        INSERT INTO maintenance_tasks (poster_id, taker_id, state, completed_at)
        SELECT 'user-' || n, 'user-' || n + 1, CASE WHEN mod(n, 2) = 0 THEN 'completed' ELSE 'taken' END,
               CASE WHEN mod(n, 2) = 0 THEN now() END
        FROM generate_series(1, 41000) AS n;
        INSERT INTO maintenance_reviews (task_id, user_id, rating)
        SELECT id, taker_id, 1 + mod(id, 5) FROM maintenance_tasks WHERE mod(id, 10) = 0;
    """),
    due="SELECT id FROM maintenance_changed_users",
    kept="SELECT ctid::text, * FROM maintenance_user_statistics WHERE user_id LIKE 'kept-%' ORDER BY user_id",
    wrong="""
        SELECT n, figures FROM generate_series(1, 41001) AS n
        LEFT JOIN maintenance_user_statistics AS figures ON figures.user_id = 'user-' || n
        WHERE (tasks_posted, tasks_taken, tasks_completed, completion_rate, average_rating) IS DISTINCT FROM (
            (n <= 41000)::int, (n > 1)::int, (n > 1 AND mod(n, 2) = 1)::int, CASE WHEN n > 1 THEN mod(n, 2) END,
            CASE WHEN n > 1 AND mod(n - 1, 10) = 0 THEN 1 + mod(n - 1, 5) END)
    """,
)

RESPONSE_TIMES = Sweep(
    fill=rows("""
        INSERT INTO maintenance_task_experts (id, name, is_featured, average_response_time)
        SELECT 'due-' || n, 'Zoe', true, NULL FROM generate_series(1, 4500) AS n
        UNION ALL SELECT 'kept-featured-' || n, 'Zoe', true, interval '15 min' FROM generate_series(1, 50) AS n
        UNION ALL SELECT 'kept-' || n, 'Zoe', false, interval '1 day' FROM generate_series(1, 50) AS n;
        INSERT INTO maintenance_expert_inquiries (expert_id, asked_at, answered_at)
        SELECT id, now(), now() + took
        FROM maintenance_task_experts, unnest(ARRAY[interval '10 min', '20 min']) AS took;
    """),
    due="""
        SELECT id FROM maintenance_task_experts
        WHERE id LIKE 'due-%' AND average_response_time IS DISTINCT FROM interval '15 min'
    """,
    kept="SELECT ctid::text, * FROM maintenance_task_experts WHERE id LIKE 'kept-%' ORDER BY id",
)

BIO = "1 task completed, mostly cleaning. Rated 5.0 by 1 person."
BIOS = Sweep(
    fill=rows(f"""
        INSERT INTO maintenance_task_experts (id, name, bio)
        SELECT 'due-' || n, 'Zoe', CASE WHEN mod(n, 2) = 0 THEN '' ELSE 'New here.' END
        FROM generate_series(1, 4500) AS n
        UNION ALL SELECT 'kept-' || n, 'Zoe', '{BIO}' FROM generate_series(1, 50) AS n;
        INSERT INTO maintenance_tasks (poster_id, taker_id, category, state, completed_at)
        SELECT 'ann', id, 'cleaning', 'completed', now() FROM maintenance_task_experts;
        INSERT INTO maintenance_reviews (task_id, user_id, rating) SELECT id, taker_id, 5 FROM maintenance_tasks;
    """),
    due=f"SELECT id FROM maintenance_task_experts WHERE id LIKE 'due-%' AND bio <> '{BIO}'",
    kept="SELECT ctid::text, * FROM maintenance_task_experts WHERE id LIKE 'kept-%' ORDER BY id",
    counts=("changed",),
)

SWEEPS = {
    "cancel-expired-tasks": TASKS,
    "check-expired-coupons": codes("expiry_coupons"),
    "check-expired-invitation-codes": codes("expiry_invitation_codes"),
    "check-expired-points": POINTS,
    "cleanup-expired-sessions": Sweep(store_sessions, counts=("inactive", "gone")),
    "cleanup-expired-cache": Sweep(store_cache, counts=("deleted",)),
    "cleanup-completed-task-files": COMPLETED_TASKS,
    "cleanup-expired-task-files": EXPIRED_TASKS,
    "cleanup-expired-flea-market-items": ITEMS,
    "cleanup-unused-temp-images": Sweep(
        upload_images,
        gate="BEFORE INSERT ON maintenance_bookmarks FOR EACH ROW",
        counts=("deleted",),
    ),
    "cleanup-expired-time-slots": TIME_SLOTS,
    "update-all-users-statistics": STATISTICS,
    "update-featured-task-experts-response-time": RESPONSE_TIMES,
    "update-task-experts-bio": BIOS,
}
