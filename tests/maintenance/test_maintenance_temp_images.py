"""Temporary images are deleted after 24 hours. Each run's work is bounded, and every image is reached in the end."""

import os
import random
import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from maintenance_world import A_MOMENT, NOON, age
from sqlalchemy import text
from sqlalchemy.orm import Session

from plugins.maintenance import bookmarks
from plugins.maintenance.models import Bookmark
from plugins.maintenance.temp_images import SWEEP, delete_old_images
from tests.support.racing import race

A_DAY = timedelta(hours=24)
DUE = NOON + A_DAY + A_MOMENT
PUBLIC, MARKET = "public/images/public", "flea_market"
#: The most entries that the system returns at once: 32 KiB of them (glibc, ALLOWED_BUFFER), each of at least 24 bytes.
PAGE = 32768 // 24


def sweep(world, now=DUE, **bounds):
    with world.opened() as root:
        counts = delete_old_images(world.session, root, now, checkpoint=world.checkpoint, **bounds)
    assert set(counts) == {"deleted", "folders", "entries", "failed"}
    return counts


@pytest.mark.parametrize("folder", [PUBLIC, MARKET])
def test_after_more_than_24_hours_and_not_at_exactly_24(world, folder):
    image = world.write(f"{folder}/temp_7/a.jpg", modified_at=NOON)

    assert sweep(world, NOON + A_DAY)["deleted"] == 0
    assert image.exists()

    assert sweep(world, DUE)["deleted"] == 1
    assert not image.exists()
    assert sweep(world, DUE)["deleted"] == 0


def test_a_nanosecond_counts(world):
    image = world.write(f"{MARKET}/temp_7/a.jpg")
    nanoseconds = int(NOON.timestamp()) * 10**9
    os.utime(image, ns=(0, nanoseconds - 1))

    assert sweep(world, NOON + A_DAY)["deleted"] == 1


@pytest.mark.parametrize(
    "name",
    [
        *["a.jpg", "A.JPEG", "a.Png", "a.gif", "a.webp", "a.bmp", "a.avif", "a.heic", "a.tiff", "a.svg", "de/ep/a.jpg"],
        *["\udcff\udcfe.jpg", "new\nline.jpg", "a.jpg.png", ".jpg", "-rf.jpg"],
    ],
)
def test_images_of_every_kind_go(world, name):
    world.write(f"{MARKET}/temp_7/{name}", modified_at=NOON)

    assert sweep(world)["deleted"] == 1


@pytest.mark.parametrize(
    "path",
    [
        f"{MARKET}/temp_7/a.txt",
        f"{MARKET}/temp_7/a",
        f"{MARKET}/temp_7/a.jpg.part",
        f"{MARKET}/7/a.jpg",
        f"{MARKET}/a.jpg",
        f"{MARKET}/temp_a.jpg",
        f"{MARKET}/xtemp_7/a.jpg",
        f"{MARKET}/TEMP_7/a.jpg",
        f"{MARKET}/7/temp_7/a.jpg",
        f"{PUBLIC}/12/a.jpg",
        "public/images/temp_7/a.jpg",
        "temp_7/a.jpg",
        "private/temp_7/a.jpg",
        "../flea_market/temp_7/a.jpg",
    ],
)
def test_anything_else_stays(world, path):
    file = world.write(path, modified_at=NOON)

    assert sweep(world)["deleted"] == 0
    assert file.exists()


def test_links_are_neither_followed_nor_deleted(world):
    outside = world.write("../outside/a.jpg", modified_at=NOON)
    folder = world.write(f"{MARKET}/temp_7/old.jpg", modified_at=NOON).parent
    (folder / "link.jpg").symlink_to(outside)
    (folder / "inner").symlink_to(outside.parent)
    (world.root / MARKET / "temp_8").symlink_to(outside.parent)
    for link in (folder / "link.jpg", folder / "inner", world.root / MARKET / "temp_8"):
        age(link, NOON)

    assert sweep(world)["deleted"] == 1
    assert outside.exists()
    assert (folder / "link.jpg").is_symlink()


def test_a_link_in_the_place_of_a_folder_above_is_reported_and_the_other_goes_on(world, caplog):
    outside = world.write("../outside/temp_1/a.jpg", modified_at=NOON)
    (world.root / "public").symlink_to(outside.parent.parent)
    world.write(f"{MARKET}/temp_7/a.jpg", modified_at=NOON)

    counts = sweep(world)

    assert (counts["deleted"], counts["failed"]) == (1, 1)
    assert outside.exists()
    assert "temp_images.not_deleted folder='public/images/public'" in caplog.text


def test_a_folder_that_is_empty_for_a_day_goes_and_never_one_above(world):
    for folder in (f"{MARKET}/temp_7", f"{MARKET}/temp_8", f"{MARKET}/9", "temp_1"):
        (world.root / folder).mkdir(parents=True)
    for folder in (MARKET, f"{MARKET}/temp_7", f"{MARKET}/9", "temp_1"):
        age(world.root / folder, NOON)

    assert sweep(world)["folders"] == 1
    assert sorted(path.name for path in (world.root / MARKET).iterdir()) == ["9", "temp_8"]


def test_a_folder_emptied_by_a_run_stays_for_another_day(world):
    image = world.write(f"{MARKET}/temp_7/a.jpg", modified_at=NOON)
    assert sweep(world) == {"deleted": 1, "folders": 0, "entries": 2, "failed": 0}
    assert image.parent.exists()

    age(image.parent, NOON)
    assert sweep(world)["folders"] == 1


def test_nothing_there_at_all_is_no_error(world):
    assert sweep(world) == {"deleted": 0, "folders": 0, "entries": 0, "failed": 0}


def test_at_most_the_set_number_goes_in_each_run(world):
    for number in range(25):
        world.write(f"{MARKET}/temp_{number % 3}/{number}.jpg", modified_at=NOON)

    assert [sweep(world, limit=10)["deleted"] for _ in range(4)] == [10, 10, 5, 0]


def test_an_image_that_goes_or_stays_when_somebody_else_is_quicker(world, monkeypatch):
    """Between the check and the deletion, the image is deleted by another run, or replaced by a folder or a link."""
    for name in ("gone.jpg", "folder.jpg", "link.jpg", "z.jpg"):
        world.write(f"{MARKET}/temp_7/{name}", modified_at=NOON)
    outside = world.write("../outside.jpg")
    folder, unlink = world.root / f"{MARKET}/temp_7", os.unlink

    def quicker(name, **options):
        if name in {"gone.jpg", "folder.jpg", "link.jpg"}:
            unlink(folder / name)
        if name == "folder.jpg":
            (folder / name).mkdir()
        if name == "link.jpg":
            (folder / name).symlink_to(outside)
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", quicker)
    counts = sweep(world)

    assert (counts["deleted"], counts["failed"]) == (2, 1)
    assert outside.exists()
    assert [path.name for path in folder.iterdir()] == ["folder.jpg"]


@pytest.mark.parametrize("place", [[0, []], [1, [["", 0, 0]]]], ids=["from the beginning", "in two rounds"])
def test_folders_that_cannot_be_read_or_written_are_reported_once_and_the_others_go_on(
    world, monkeypatch, caplog, place
):
    """The test uses an account whose permissions are checked, since tests may run as root."""
    world.add(Bookmark, sweep=SWEEP, place=place)
    for number in (1, 2, 3):
        for image in range(4):
            world.write(f"{MARKET}/temp_{number}/personal-{image}.jpg", modified_at=NOON)
    read_only, unreadable = ((world.root / f"{MARKET}/temp_{number}").stat().st_ino for number in (1, 2))
    unlink, open_ = os.unlink, os.open

    def no_unlink(name, *, dir_fd):
        if os.fstat(dir_fd).st_ino == read_only:
            raise PermissionError(13, "Permission denied", name)
        unlink(name, dir_fd=dir_fd)

    def no_open(name, flags, *args, dir_fd=None):
        if dir_fd is not None and os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino == unreadable:
            raise PermissionError(13, "Permission denied", name)
        return open_(name, flags, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", no_unlink)
    monkeypatch.setattr(os, "open", no_open)
    counts = sweep(world)

    assert (counts["deleted"], counts["failed"]) == (4, 5)
    assert caplog.text.count("reason=Permission denied") == 2
    assert caplog.text.count("temp_images.not_deleted folder='flea_market/temp_1' entries=4") == 1
    assert "personal" not in caplog.text


def test_a_folder_that_breaks_while_it_is_listed_is_reported_and_the_others_go_on(world, monkeypatch):
    for number in (1, 2):
        world.write(f"{MARKET}/temp_{number}/a.jpg", modified_at=NOON)
    broken, lseek = (world.root / f"{MARKET}/temp_1").stat().st_ino, os.lseek

    def fail(folder, position, how):
        if how == os.SEEK_CUR and os.fstat(folder).st_ino == broken:
            raise OSError(5, "Input/output error")
        return lseek(folder, position, how)

    monkeypatch.setattr(os, "lseek", fail)
    counts = sweep(world)

    assert (counts["deleted"], counts["failed"]) == (1, 1)


@contextmanager
def entries_listed(monkeypatch):
    """Count the entries that are read from folders."""
    handed_out, scandir = [], os.scandir

    @contextmanager
    def counted(folder):
        with scandir(folder) as entries:
            yield (handed_out.append(entry) or entry for entry in entries)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", counted)
        yield handed_out


def fill(folder, count, modified_at=None):
    """Make many images with the same few bytes, which is fast."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "0.jpg"
    first.touch()
    if modified_at is not None:
        age(first, modified_at)
    for number in range(1, count):
        path = folder / f"{number}.jpg"
        if number % 30000:  # a file has at most 65,000 names on ext4
            os.link(first, path)
        else:
            first = path
            first.touch()
            if modified_at is not None:
                age(first, modified_at)


@pytest.mark.slow
def test_a_folder_of_50_000_young_images_costs_each_run_a_bounded_look_and_an_old_one_is_reached(world, monkeypatch):
    folder = world.root / MARKET / "temp_7"
    fill(folder, 50_000, modified_at=DUE)
    old = world.write(f"{MARKET}/temp_7/old.jpg", modified_at=NOON)

    looks = []
    while old.exists():
        with entries_listed(monkeypatch) as handed_out:
            counts = sweep(world, entries=5000)
        looks.append(len(handed_out))
        assert counts["entries"] <= 5000 + PAGE

    assert len(looks) <= 11, "ten bounded looks make one round"
    assert max(looks) <= 5000 + 3 * PAGE, "and as much again as the pages in which a run began"


@pytest.mark.slow
def test_50_000_old_images_go_in_bounded_runs_without_starting_over(world, monkeypatch):
    fill(world.root / MARKET / "temp_7", 25_000, modified_at=NOON)
    fill(world.root / PUBLIC / "temp_8", 25_000, modified_at=NOON)

    runs = []
    while not runs or runs[-1][0]:
        with entries_listed(monkeypatch) as handed_out:
            runs.append((sweep(world, limit=1000)["deleted"], len(handed_out)))

    assert sum(deleted for deleted, _ in runs) == 50_000
    assert max(deleted for deleted, _ in runs) == 1000
    assert len(runs) <= 52
    assert max(looked for _, looked in runs) <= 1000 + 3 * PAGE


@pytest.mark.slow
def test_a_million_names_above_cost_no_run_a_long_look(world, monkeypatch):
    """Folders of tasks beside the temporary folders: 20,000 of them stand for a million."""
    above = world.root / PUBLIC
    fill(above, 20_000)
    old = [world.write(f"{PUBLIC}/temp_{number}/a.jpg", modified_at=NOON) for number in range(5)]

    looks = []
    while any(image.exists() for image in old):
        with entries_listed(monkeypatch) as handed_out:
            sweep(world, entries=3000)
        looks.append(len(handed_out))

    assert len(looks) <= 8
    assert max(looks) <= 3000 + 3 * PAGE


@pytest.mark.parametrize("bounds", [{"limit": 1}, {"entries": 1}, {"limit": 3, "entries": 7}, {"limit": 2}], ids=str)
def test_every_old_image_is_reached_however_small_the_steps(world, bounds):
    dice = random.Random(5)
    for number in range(120):
        inner = "/".join(["x", "y"][: dice.randrange(3)])
        modified_at = NOON if number % 2 else DUE
        world.write(f"{dice.choice([PUBLIC, MARKET])}/temp_{number % 20}/{inner}/{number}.jpg", modified_at=modified_at)

    runs = 0
    while sum(1 for path in world.root.rglob("*.jpg")) > 60:
        sweep(world, **bounds)
        runs += 1
        assert runs < 400

    assert all(int(path.stem) % 2 == 0 for path in world.root.rglob("*.jpg"))


def test_every_old_image_is_reached_while_folders_come_and_go(world):
    """This holds even if the folder in which a run stopped is deleted before the next run."""
    dice = random.Random(3)
    for number in range(60):
        world.write(f"{MARKET}/temp_{number}/old.jpg", modified_at=NOON)
    runs = 0
    while list(world.root.rglob("old.jpg")):
        sweep(world, entries=5)
        place = bookmarks.find(world.session, SWEEP)
        if place[1][1:] and dice.random() < 0.5:
            stopped_in = world.root / MARKET / bytes.fromhex(place[1][1][0]).decode()
            for path in stopped_in.glob("*"):
                path.unlink()
            if stopped_in.exists():
                stopped_in.rmdir()
        world.write(f"{MARKET}/temp_new_{runs}/young.jpg", modified_at=DUE)
        runs += 1
        assert runs < 300


def test_a_run_that_began_in_the_middle_goes_on_at_the_beginning(world):
    for number in range(6):
        world.write(f"{MARKET}/temp_{number}/a.jpg", modified_at=NOON)
    assert sweep(world, limit=3)["deleted"] == 3
    new = world.write(f"{PUBLIC}/temp_0/a.jpg", modified_at=NOON)

    assert sweep(world)["deleted"] == 4
    assert not new.exists()


@pytest.mark.parametrize(
    "place",
    [
        [1, [["", 2**62, 0]]],
        [1, [["", 2**70, 2**70]]],
        [1, [["", -5, -5], ["74656d705f37", -1, 9]]],
        [1, [["", 0, 0], [b"..".hex(), 0, 0]]],
        [1, [["", 0, 99], [b"../../outside".hex(), 0, 0], ["", 0, 0]]],
        [0, [["zz", 0, 0]]],
        [1, [["", 0]]],
        [7, []],
        [],
        {"a": 1},
        "x",
        None,
        [1, 2, 3],
        [True, [["", "x"]]],
    ],
    ids=repr,
)
def test_a_bookmark_that_means_nothing_costs_a_round_at_most(world, place):
    outside = world.write("../outside/a.jpg", modified_at=NOON)
    image = world.write(f"{MARKET}/temp_7/a.jpg", modified_at=NOON)
    world.add(Bookmark, sweep=SWEEP, place=place)

    sweep(world)
    sweep(world)

    assert not image.exists()
    assert outside.exists()


def test_a_crash_between_batches_loses_nothing(world):
    for number in range(30):
        world.write(f"{MARKET}/temp_{number % 4}/{number}.jpg", modified_at=NOON)

    def crash_on_the_second(progress):
        if progress["deleted"] > 10:
            raise ConnectionError
        world.session.commit()

    with world.opened() as root, pytest.raises(ConnectionError):
        delete_old_images(world.session, root, DUE, checkpoint=crash_on_the_second, batch=10)
    world.session.rollback()

    assert sweep(world)["deleted"] == 10
    assert world.files() == set()


def test_four_runs_at_once_delete_each_image_once(world, engine):
    for number in range(400):
        world.write(f"{[PUBLIC, MARKET][number % 2]}/temp_{number % 9}/{number}.jpg", modified_at=NOON)

    def one():
        with Session(engine) as own, world.opened() as root:
            return delete_old_images(own, root, DUE, checkpoint=lambda _: own.commit(), batch=20)

    done = race(one, one, one, one)

    assert sum(counts["deleted"] for counts in done) == 400
    assert sum(counts["failed"] for counts in done) == 0
    assert world.files() == set()


@pytest.mark.slow
def test_uploads_that_go_on_meanwhile_are_safe(world, engine):
    """A thread uploads into the folders that are being cleaned. No file that it wrote is lost."""
    stop, written = threading.Event(), []

    def upload():
        number = 0
        while not stop.is_set():
            path = f"{MARKET}/temp_{number % 5}/young-{number}.jpg"
            written.append(world.write(path, modified_at=DUE))
            number += 1

    for number in range(500):
        world.write(f"{MARKET}/temp_{number % 5}/old-{number}.jpg", modified_at=NOON)
    uploading = threading.Thread(target=upload)
    uploading.start()
    try:
        for _ in range(20):
            sweep(world, limit=50)
    finally:
        stop.set()
        uploading.join(10)

    assert written
    assert all(path.exists() for path in written)
    assert not list(world.root.rglob("old-*"))


def test_the_bookmark_is_committed_with_each_batch(world):
    for number in range(9):
        world.write(f"{MARKET}/temp_7/{number}.jpg", modified_at=NOON)

    sweep(world, batch=4)

    assert [progress["deleted"] for progress in world.checkpoints] == [4, 8, 9]
    assert world.session.execute(text("SELECT count(*) FROM maintenance_bookmarks")).scalar() == 1
