"""Whatever is below the upload root, nothing outside of it is opened, listed or deleted."""

import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from maintenance_world import A_MOMENT, NOON, age
from sqlalchemy.orm import Session

from plugins.maintenance import UploadRootError, WallError
from plugins.maintenance.models import Task
from plugins.maintenance.task_files import delete_files_of_completed
from plugins.maintenance.upload_root import DEEPEST, descended, enter, opened, remove_tree

DUE = NOON + timedelta(days=3) + A_MOMENT
#: Not root, so that the permissions of folders are checked.
NOBODY = 65534


@pytest.fixture
def outside(root):
    """Yield files beside the root, which must be unchanged after each test."""
    made = root.parent / "outside"
    (made / "folder").mkdir(parents=True)
    for name in ("a.jpg", "folder/b.jpg"):
        (made / name).write_bytes(b"precious")
        age(made / name, NOON - timedelta(days=900))
    yield made
    assert (made / "a.jpg").read_bytes() == b"precious"
    assert (made / "folder/b.jpg").read_bytes() == b"precious"


def remove(root, name="12"):
    with opened(root) as folder:
        return remove_tree(folder, name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b", "n" * 256, "../outside"], ids=repr)
def test_a_name_that_is_not_one_step_down_is_refused(root, outside, name):
    with opened(root) as folder:
        with pytest.raises(WallError):
            enter(folder, name)
        with pytest.raises(WallError):
            remove_tree(folder, name)


def test_links_in_a_folder_go_and_what_they_lead_to_stays(root, outside):
    own = root / "12"
    own.mkdir()
    (own / "file").symlink_to(outside / "a.jpg")
    (own / "folder").symlink_to(outside / "folder")
    (own / "up").symlink_to("..")
    (own / "self").symlink_to("self")
    (own / "nowhere").symlink_to("/does/not/exist")

    assert remove(root) == 5
    assert not own.exists()


def test_a_link_in_the_place_of_an_own_folder_is_refused_and_stays(root, outside):
    (root / "12").symlink_to(outside)

    with pytest.raises(WallError, match="a symlink or a file where a folder should be"):
        remove(root)
    assert (root / "12").is_symlink()


def test_a_link_above_an_own_folder_is_refused(root, outside):
    (root / "public").symlink_to(outside)

    with (
        opened(root) as folder,
        pytest.raises(WallError, match="'public' below the upload root: a symlink"),
        descended(folder, ("public", "images")),
    ):
        pass


def test_a_file_with_another_name_elsewhere_loses_the_one_here(root, outside):
    (root / "12").mkdir()
    os.link(outside / "a.jpg", root / "12" / "a.jpg")

    assert remove(root) == 1
    assert (outside / "a.jpg").stat().st_nlink == 1


def test_sockets_and_pipes_go_without_being_opened(root):
    (root / "12").mkdir()
    os.mkfifo(root / "12" / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        previous = Path.cwd()
        os.chdir(root / "12")  # the path of a socket must be short
        listening.bind("socket")
        os.chdir(previous)

    assert remove(root) == 2


def test_names_of_every_kind_of_byte(root):
    own = os.fsencode(root / "12")
    os.mkdir(own)
    for number in set(range(1, 256)) - {ord("/"), ord(".")}:
        os.close(os.open(own + b"/" + bytes([number]), os.O_CREAT))

    assert remove(root) == 253
    assert not (root / "12").exists()


def test_nothing_there_is_no_error(root):
    assert remove(root) == 0


def test_a_tree_as_deep_as_allowed_goes_and_a_deeper_one_is_refused(root, monkeypatch):
    deepest = root / "12" / "/".join("d" * (DEEPEST - 1))
    deepest.mkdir(parents=True)
    (deepest / "a").touch()
    assert remove(root) == 1

    (deepest / "d").mkdir(parents=True)
    with pytest.raises(WallError, match="deeper than 64"):
        remove(root)
    assert (root / "12").exists()


def test_another_device_within_a_folder_is_refused(root, monkeypatch):
    """A test may not mount file systems, so the inner folder only pretends to be on another device."""
    (root / "12" / "mounted").mkdir(parents=True)
    (root / "12" / "mounted" / "a.jpg").touch()
    inner = (root / "12" / "mounted").stat().st_ino
    monkeypatch.setattr(os, "fstat", elsewhere(os.fstat, inner))

    with pytest.raises(WallError, match="another device"):
        remove(root)
    assert (root / "12" / "mounted" / "a.jpg").exists()


def elsewhere(fstat, inode):
    def call(folder):
        found = fstat(folder)
        if found.st_ino != inode:
            return found
        values = list(found)
        values[2] = found.st_dev + 1
        return os.stat_result(values)

    return call


def test_one_thing_that_cannot_be_deleted_does_not_spare_the_rest(root, monkeypatch):
    own = root / "12"
    own.mkdir()
    for name in ("a", "b", "c"):
        (own / name).touch()
    unlink = os.unlink

    def refuse_b(name, **options):
        if name == "b":
            raise PermissionError(1, "Operation not permitted", name)
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", refuse_b)
    with pytest.raises(PermissionError):
        remove(root)
    assert [path.name for path in own.iterdir()] == ["b"]


def test_a_folder_replaced_while_it_is_emptied_keeps_what_took_its_place(root, outside, monkeypatch):
    """Just after the last file was deleted, the folder is replaced by a link or by another folder."""
    own = root / "12"
    for replace in (lambda: own.symlink_to(outside), lambda: own.mkdir()):
        own.mkdir()
        (own / "a.jpg").touch()
        unlink = os.unlink

        def and_replace(name, unlink=unlink, replace=replace, **options):
            unlink(name, **options)
            own.rename(root / "moved away")
            replace()

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", and_replace)
            with pytest.raises(WallError, match="replaced"):
                remove(root)
        assert own.is_symlink() or own.is_dir()
        own.unlink() if own.is_symlink() else own.rmdir()
        (root / "moved away").rmdir()


def test_a_folder_that_is_given_a_file_while_it_is_emptied_is_emptied_again(root, monkeypatch):
    own = root / "12"
    own.mkdir()
    (own / "a.jpg").touch()
    rmdir, late = os.rmdir, iter(["late.jpg"])

    def after_a_late_one(name, **options):
        for file in late:
            (own / file).touch()
        rmdir(name, **options)

    monkeypatch.setattr(os, "rmdir", after_a_late_one)
    assert remove(root) == 2
    assert not own.exists()


@pytest.mark.slow
def test_a_thread_that_swaps_folders_for_links_cannot_lead_a_deletion_out(root, outside):
    """For a while, a thread replaces each folder by a link to the outside, and back again."""
    stop = threading.Event()
    precious = {path: path.stat().st_ino for path in outside.rglob("*")}

    def swap():
        inner, hidden, link = root / "12" / "inner", root / "hidden", root / "link"
        while not stop.is_set():
            for step in (
                lambda: inner.rename(hidden),
                lambda: os.symlink(outside, link),
                lambda: link.rename(inner),
                lambda: inner.unlink(),
                lambda: hidden.rename(inner),
                lambda: inner.mkdir(parents=True),
                lambda: (inner / "a.jpg").touch(),
            ):
                try:
                    step()
                except OSError:
                    continue

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        outcomes = {outcome(lambda: remove(root)) for _ in range(3000)}
    finally:
        stop.set()
        swapping.join(10)

    assert {path: path.stat().st_ino for path in outside.rglob("*")} == precious
    assert outcomes <= {"int", "WallError", "OSError", "NotADirectoryError"}
    assert "int" in outcomes


def outcome(call):
    try:
        return type(call()).__name__
    except (OSError, WallError) as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "names a folder that does not exist"),
        (lambda path: path.touch(), "names something that is not a folder"),
        (lambda path: path.symlink_to("/tmp"), "names a symlink, and must name the folder itself"),
    ],
)
def test_a_root_that_cannot_be_used_is_named_with_its_setting(tmp_path, make, problem):
    path = tmp_path / "uploads"
    make(path)

    with pytest.raises(UploadRootError, match=f"ROTA_MAINTENANCE_UPLOAD_ROOT {problem}"), opened(path):
        pass


def test_a_root_that_is_not_set(tmp_path):
    with pytest.raises(UploadRootError, match="ROTA_MAINTENANCE_UPLOAD_ROOT is not set"), opened(None):
        pass


def test_no_folder_is_left_open(root, outside):
    (root / "12" / "a" / "b").mkdir(parents=True)
    (root / "12" / "a" / "b" / "c").touch()
    (root / "13").symlink_to(outside)
    before = len(os.listdir("/proc/self/fd"))

    remove(root)
    with pytest.raises(WallError):
        remove(root, "13")

    assert len(os.listdir("/proc/self/fd")) == before


AS_NOBODY = """
import os, sys
from datetime import datetime
sys.path[:0] = {path!r}
from pathlib import Path
from plugins.maintenance.errors import MaintenanceError
from plugins.maintenance.upload_root import opened, remove_tree
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
with opened(Path(sys.argv[1])) as root:
    for name in sys.argv[2:]:
        try:
            print(name, remove_tree(root, name))
        except OSError as error:
            print(name, type(error).__name__)
"""


def as_nobody(root, *names):
    """Remove these folders as an account whose permissions are checked."""
    script = AS_NOBODY.format(path=sys.path, nobody=NOBODY)
    command = [sys.executable, "-c", script, str(root), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def nobodys(root):
    """Give the root to the account ``nobody``, which can reach it."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    for folder in (root, *root.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(0o755)
    os.chown(root, NOBODY, NOBODY)
    return root


def test_read_only_and_unreadable_folders_are_reported_and_the_others_go(nobodys):
    for name, mode in (("1", 0o755), ("2", 0o555), ("3", 0o000), ("4", 0o755), ("5", 0o755)):
        own = nobodys / name
        (own / "inner").mkdir(parents=True)
        (own / "inner" / "a.jpg").touch()
        (own / "b.jpg").touch()
        for path in (own / "inner", own / "inner" / "a.jpg", own / "b.jpg", own):
            os.chown(path, NOBODY, NOBODY)
        (own / "inner").chmod(0o000 if name == "4" else 0o755)
        own.chmod(mode)

    done = as_nobody(nobodys, "1", "2", "3", "4", "5")

    assert done.stdout.splitlines() == ["1 2", "2 PermissionError", "3 PermissionError", "4 PermissionError", "5 2"]
    assert not (nobodys / "4" / "b.jpg").exists(), "the rest of the folder went"


def test_a_root_that_this_user_cannot_write_to_is_named_with_its_setting(nobodys):
    nobodys.chmod(0o555)

    done = as_nobody(nobodys)

    assert "ROTA_MAINTENANCE_UPLOAD_ROOT names a folder that this user cannot write to" in done.stderr


def test_a_root_that_this_user_cannot_open_is_named_with_its_setting(nobodys):
    nobodys.chmod(0o000)

    assert "ROTA_MAINTENANCE_UPLOAD_ROOT names a folder that cannot be opened" in as_nobody(nobodys).stderr


def test_a_task_whose_folder_cannot_be_deleted_is_counted_and_the_others_go_on(world, engine, monkeypatch, caplog):
    stuck, fine = world.task("completed"), world.task("completed")
    world.file(stuck, "private.jpg"), world.file(fine)
    inode = (world.root / f"public/images/public/{stuck}").stat().st_ino
    unlink = os.unlink

    def refuse(name, *, dir_fd):
        if os.fstat(dir_fd).st_ino == inode:
            raise PermissionError(13, "Permission denied", name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    with Session(engine) as own, world.opened() as root:
        counts = delete_files_of_completed(own, root, DUE, checkpoint=lambda _: own.commit())

    assert counts == {"tasks": 1, "files": 1, "failed": 1}
    assert world.get(Task, stuck).files_deletion_began_at == DUE
    assert world.get(Task, stuck).files_deleted_at is None
    assert world.get(Task, fine).files_deleted_at == DUE
    assert f"files.not_deleted task={stuck} reason=Permission denied" in caplog.text
    assert "private.jpg" not in caplog.text
