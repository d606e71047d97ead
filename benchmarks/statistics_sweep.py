"""Users' figures: the sweep after some changes, the sweep after all of them, and one full recomputation.

python -m benchmarks.statistics_sweep [--users 100000] [--tasks 1000000] [--changed 1000] [--repetitions 5]
"""

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from benchmarks import meter
from core import database
from core.embedded import EmbeddedPostgres, temporary_folder
from core.plugins import loading
from core.schema import upgrade
from plugins.maintenance.statistics import recompute_all, update_statistics

TASKS = text("""
    INSERT INTO maintenance_tasks (poster_id, taker_id, state, completed_at)
    SELECT 'user-' || (random() * :users)::int, 'user-' || (random() * :users)::int,
        CASE WHEN number % 3 = 0 THEN 'completed' ELSE 'taken' END,
        CASE WHEN number % 3 = 0 THEN now() END
    FROM generate_series(1, :tasks) AS number
""")
REVIEWS = text("""
    INSERT INTO maintenance_reviews (task_id, user_id, rating)
    SELECT id, taker_id, 1 + id % 5 FROM maintenance_tasks WHERE state = 'completed'
""")
#: Each changes the figures of two users at most.
CHANGES = text("""
    UPDATE maintenance_tasks SET state = CASE state WHEN 'taken' THEN 'completed' ELSE 'taken' END,
        completed_at = CASE state WHEN 'taken' THEN now() END
    WHERE id IN (SELECT 1 + (random() * (SELECT max(id) - 1 FROM maintenance_tasks))::bigint
                 FROM generate_series(1, :changes))
""")
MARK_EVERYONE = text("""
    INSERT INTO maintenance_changed_users (user_id) SELECT user_id FROM maintenance_user_statistics
""")
FIGURES = text("""
    SELECT md5(string_agg(concat_ws(',', user_id, tasks_posted, tasks_taken, tasks_completed, completion_rate,
        average_rating), ';' ORDER BY user_id)) FROM maintenance_user_statistics
""")


def timed(engine: Engine, work: Callable[[Session], object]) -> float:
    """Seconds that ``work`` takes, with its commits."""
    with Session(engine) as session:
        began = time.perf_counter()
        work(session)
        session.commit()
        return time.perf_counter() - began


def sweep(session: Session) -> None:
    """What the job does."""
    update_statistics(session, datetime.now(UTC), checkpoint=lambda _=None, /: session.commit())


def recompute(session: Session) -> None:
    """Everyone, in one go."""
    recompute_all(session, datetime.now(UTC))


def change(engine: Engine, statement: str, **parameters: int) -> None:
    """Commit a change, and let PostgreSQL take note of it."""
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)
    with database.autocommit(engine) as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--changed", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    some, everyone, full = [], [], []
    with temporary_folder() as folder:
        Path(folder).chmod(0o755)
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        postgres.start()
        engine = database.connect(postgres.url)
        list(upgrade.upgrade(engine, loading.current()))
        change(engine, TASKS.text, users=options.users - 1, tasks=options.tasks)
        change(engine, REVIEWS.text)
        first = timed(engine, sweep)
        for _ in range(options.repetitions):
            change(engine, CHANGES.text, changes=options.changed)
            some.append(timed(engine, sweep))
            swept = all_figures(engine)
            full.append(timed(engine, recompute))
            assert swept == all_figures(engine), "the sweep and the recomputation differ"
            change(engine, MARK_EVERYONE.text)
            everyone.append(timed(engine, sweep))
        engine.dispose()
        postgres.stop()
    print(f"{options.users} users, {options.tasks} tasks, {options.repetitions} repetitions, interleaved")
    print(f"the very first sweep, which writes everyone: {first:.2f} s")
    print(f"sweep after {options.changed} tasks changed: {meter.spread(some)} s")
    print(f"sweep with everyone marked:    {meter.spread(everyone)} s")
    print(f"full recomputation:            {meter.spread(full)} s")
    print(f"ratio sweep/full: {meter.spread([a / b for a, b in zip(some, full, strict=True)])}")


def all_figures(engine: Engine) -> str:
    """Everyone's figures in one string, to compare."""
    with engine.connect() as connection:
        return str(connection.execute(FIGURES).scalar_one())


if __name__ == "__main__":
    main()
