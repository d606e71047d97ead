"""Deleting old temporary images: the job's function, its limit lifted, beside ``find -delete`` on an identical tree.

python -m benchmarks.temp_files [--files 200000] [--repetitions 3] [--folder /somewhere/on/the/disk]
"""

import argparse
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from benchmarks import meter
from core import database, migrate, plugins
from core.embedded import EmbeddedPostgres
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


def find(root: Path) -> float:
    """Seconds that find(1) takes."""
    began = time.perf_counter()
    subprocess.run(["find", str(root), *FIND], check=True)
    return time.perf_counter() - began


def sweep(root: Path, engine: Engine) -> float:
    """Seconds that the job's function takes, with its commits."""
    began = time.perf_counter()
    with Session(engine) as session, opened(root) as folder:
        delete_old_images(
            session,
            folder,
            datetime.now(UTC),
            checkpoint=lambda _: session.commit(),
            limit=ENOUGH,
            entries=ENOUGH,
        )
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    theirs, ours = [], []
    with TemporaryDirectory(dir=options.folder) as folder:
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        Path(folder).chmod(0o755)
        postgres.start()
        engine = database.connect(postgres.url)
        list(migrate.upgrade(engine, plugins.current()))
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
    print(f"find -delete: {meter.spread(theirs)} s")
    print(f"rota:         {meter.spread(ours)} s")
    print(f"ratio rota/find: {meter.spread([a / b for a, b in zip(ours, theirs, strict=True)])}")


if __name__ == "__main__":
    main()
