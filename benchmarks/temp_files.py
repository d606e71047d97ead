"""Deleting old temporary images: the job's function, its limit lifted, beside ``find -delete`` on an identical tree.

python -m benchmarks.temp_files [--files 200000] [--repetitions 5] [--folder /somewhere/on/the/disk]
"""

import argparse
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from benchmarks import meter
from core import database
from core.embedded import EmbeddedPostgres
from core.plugins import loading
from core.schema import upgrade
from plugins.maintenance.temp_images import delete_old_images
from plugins.maintenance.upload_root import opened

#: Users with temporary uploads; each has a folder.
FOLDERS = 400
FIND = ["-type", "f", "-mmin", "+1440", "-name", "*.jpg", "-delete"]
ENOUGH = 10**9


def grow(root: Path, files: int) -> None:
    """A tree of temporary images, two days old, in both of the places the job looks at."""
    old = time.time() - timedelta(days=2).total_seconds()
    above = [root / "public/images/public", root / "flea_market"]
    for number in range(FOLDERS):
        folder = above[number % 2] / f"temp_{number}"
        folder.mkdir(parents=True)
        descriptor = os.open(folder, os.O_RDONLY)
        for image in range(number, files, FOLDERS):
            name = f"{image:08}-upload.jpg"
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
            os.utime(name, (old, old), dir_fd=descriptor)
        os.close(descriptor)
    os.sync()


class Taken(NamedTuple):
    """How long something took, and how much of that a processor worked on it; both in seconds."""

    wall: float
    processor: float


def timed(who: int, work: Callable[[], object]) -> Taken:
    """How long ``work`` takes; ``who`` of resource.getrusage does it."""
    began, before = time.perf_counter(), resource.getrusage(who)
    work()
    after = resource.getrusage(who)
    return Taken(time.perf_counter() - began, sum(after[:2]) - sum(before[:2]))  # in user mode and in the kernel


def find(root: Path) -> Taken:
    """What find(1) takes."""
    command = ["find", str(root), *FIND]
    return timed(resource.RUSAGE_CHILDREN, lambda: subprocess.run(command, check=True))


def sweep(root: Path, engine: Engine) -> Taken:
    """What the job's function takes, with its commits."""
    return timed(resource.RUSAGE_SELF, lambda: delete(root, engine))


def delete(root: Path, engine: Engine) -> None:
    """What the job does, its limit lifted."""
    with Session(engine) as session, opened(root) as folder:
        delete_old_images(
            session,
            folder,
            datetime.now(UTC),
            checkpoint=lambda _=None, /: session.commit(),
            limit=ENOUGH,
            entries=ENOUGH,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    theirs: list[Taken] = []
    ours: list[Taken] = []
    with TemporaryDirectory(dir=options.folder) as folder:
        Path(folder).chmod(0o711)  # as root, the server's account passes through it
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        Path(folder).chmod(0o755)
        postgres.start()
        engine = database.connect(postgres.url)
        list(upgrade.upgrade(engine, loading.current()))
        for repetition in range(options.repetitions):
            measures = [(theirs, find), (ours, lambda root: sweep(root, engine))]
            for times, measure in measures if repetition % 2 else reversed(measures):
                root = Path(folder) / "uploads"
                grow(root, options.files)
                times.append(measure(root))
                assert not any(names for _, _, names in os.walk(root))
                shutil.rmtree(root)
        engine.dispose()
        postgres.stop()
    print(f"{options.files} files in {FOLDERS} folders, {options.repetitions} repetitions, interleaved")
    print(f"find -delete: {meter.spread([taken.wall for taken in theirs])} s")
    print(f"rota:         {meter.spread([taken.wall for taken in ours])} s")
    pairs = list(zip(ours, theirs, strict=True))
    print(f"ratio rota/find: {meter.spread([a.wall / b.wall for a, b in pairs])}")
    print(f"ratio of processor time: {meter.spread([a.processor / b.processor for a, b in pairs])}")


if __name__ == "__main__":
    main()
