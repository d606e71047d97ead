"""The local store, with symlinks, a full disk, crashes and other threads."""

import errno
import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from core.embedded.accounts import pgserver_account
from plugins.mail.store import (
    LocalStore,
    NoSuchObject,
    StoreAddressError,
    StoreAway,
    StoreError,
    StoreFull,
    StoreRefused,
    check_address,
    message_key,
    open_store,
)
from plugins.mail.store.local import as_store_error

KEY = message_key(42, 7, 1, 12_345)
#: Stores an object of 4 MiB in the given folder, as the given user and with files of a limited size, and prints the
#: error. It imports its modules as the present user, who can read them.
PUT_4_MIB = """
import io, os, resource, signal, sys
from pathlib import Path
from plugins.mail.store import LocalStore, StoreError

root, key, user, most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
if user != os.geteuid():
    os.setgroups([])
    os.setuid(user)
try:
    LocalStore(Path(root)).put(key, io.BytesIO(bytes(4 << 20)))
except StoreError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "mail"
    made.mkdir()
    return made


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


def put_in_a_process(root: Path, *, user: int | None = None, most: int = 1 << 30) -> str:
    """Return the error of storing 4 MiB in a process of its own."""
    command = [sys.executable, "-c", PUT_4_MIB, str(root), KEY, str(os.geteuid() if user is None else user), str(most)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_a_message_lies_below_its_account_and_no_folder_grows_beyond_a_thousand(store, root):
    store.put(KEY, io.BytesIO(b"mail"))

    assert files(root) == ["42/7.1/12/12345.eml"]


def test_only_the_service_can_read_messages(store, root):
    store.put(KEY, io.BytesIO(b"mail"))

    assert (root / KEY).stat().st_mode & 0o777 == 0o600
    assert (root / "42").stat().st_mode & 0o777 == 0o700


def test_deleting_the_last_object_of_a_folder_removes_the_folder_and_never_the_root(store, root):
    store.put(KEY, io.BytesIO(b"mail"))
    store.put(message_key(42, 7, 1, 1), io.BytesIO(b"mail"))

    store.delete([KEY])
    assert sorted(path.name for path in (root / "42" / "7.1").iterdir()) == ["0"]
    store.delete([message_key(42, 7, 1, 1)])

    assert list(root.iterdir()) == []


@pytest.mark.parametrize("link", ["42", "42/7.1", "42/7.1/12", KEY])
def test_a_symlink_is_never_followed(store, root, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "12345.eml").write_bytes(b"not ours")
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(outside / "12345.eml" if link == KEY else outside)

    with pytest.raises(StoreError):
        store.open(KEY)
    if link != KEY:  # a file in place of the link is the wanted result
        with pytest.raises(StoreError, match="symlink"):
            store.put(KEY, io.BytesIO(b"mail"))
        with pytest.raises(StoreError):
            store.delete([KEY])
    else:
        store.put(KEY, io.BytesIO(b"mail"))

    assert [path.name for path in outside.iterdir()] == ["12345.eml"]
    assert (outside / "12345.eml").read_bytes() == b"not ours"


def test_a_full_disk_is_told_and_neither_part_of_a_message_nor_an_older_one_is_lost(store, root):
    store.put(KEY, io.BytesIO(b"older"))

    told = put_in_a_process(root, most=1 << 20)

    assert told.startswith("StoreFull the store of ROTA_MAIL_STORE is full")
    assert "make room" in told
    assert files(root) == [KEY]
    assert (root / KEY).read_bytes() == b"older"


def test_a_folder_that_is_read_only_is_told():
    with TemporaryDirectory(prefix="rota-mail-") as folder:
        os.chmod(folder, 0o555)
        user = pgserver_account().uid if os.geteuid() == 0 else None  # the mode of a folder does not restrict root

        told = put_in_a_process(Path(folder), user=user)

        assert told.startswith("StoreRefused the store of ROTA_MAIL_STORE refuses")
        assert "Permission denied" in told
        assert list(Path(folder).iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EROFS, StoreRefused),
        (errno.EACCES, StoreRefused),
        (errno.EIO, StoreAway),
        (errno.ESTALE, StoreAway),
    ],
)
def test_what_the_system_says_becomes_an_error_that_says_what_to_do(number, kind):
    error = as_store_error(KEY, OSError(number, os.strerror(number)))

    assert type(error) is kind
    assert "ROTA_MAIL_STORE" in str(error)
    assert KEY in str(error)


def test_a_reader_sees_the_older_message_or_the_newer_one_and_nothing_between(store):
    older, newer = b"a" * 300_000, b"b" * 300_000
    store.put(KEY, io.BytesIO(older))
    done = threading.Event()

    def read() -> set[bytes]:
        seen = set()
        while not done.is_set():
            with store.open(KEY) as file:
                seen.add(file.read())
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for number in range(20):
            store.put(KEY, io.BytesIO((older, newer)[number % 2]))
        done.set()

    assert set.union(*(reader.result() for reader in readers)) <= {older, newer}


def test_folders_that_are_removed_and_made_at_the_same_time_lose_no_message(store):
    def fill(thread: int) -> None:
        for number in range(50):
            keep, drop = message_key(thread, 1, 1, number), message_key(99, 1, 1, thread * 1000 + number)
            store.put(keep, io.BytesIO(b"mail"))
            store.put(drop, io.BytesIO(b"mail"))
            store.delete([drop])

    with ThreadPoolExecutor(4) as pool:
        for filled in [pool.submit(fill, thread) for thread in range(4)]:
            filled.result()

    assert sorted(found.key for found in store.list()) == sorted(
        message_key(thread, 1, 1, number) for thread in range(4) for number in range(50)
    )


def test_what_a_crash_left_half_written_is_listed_and_can_be_deleted(store, root):
    (root / "42/7.1/12").mkdir(parents=True)
    (root / "42/7.1/12/.12345.eml.0123456789abcdef").write_bytes(b"ha")

    left = [found.key for found in store.list("42/")]
    store.delete(left)

    assert left == ["42/7.1/12/.12345.eml.0123456789abcdef"]
    assert list(root.iterdir()) == []


def test_files_of_others_are_neither_listed_nor_deleted(store, root):
    (root / "lost+found").mkdir()
    (root / "README").write_text("do not delete")

    assert list(store.list()) == []


def test_a_pipe_in_place_of_a_message_does_not_stop_the_reader(store, root):
    (root / KEY).parent.mkdir(parents=True)
    os.mkfifo(root / KEY)

    with pytest.raises(NoSuchObject):
        store.open(KEY)


@pytest.mark.parametrize("kind", ["missing", "file", "link"])
def test_a_root_that_is_no_folder_is_refused_and_not_made(tmp_path, kind):
    root = tmp_path / "mail"
    if kind == "file":
        root.write_text("")
    elif kind == "link":
        root.symlink_to(tmp_path)

    with pytest.raises(StoreAddressError, match="not a folder"):
        LocalStore(root).put(KEY, io.BytesIO(b"mail"))
    with pytest.raises(StoreAddressError, match="not a folder"):
        list(LocalStore(root).list())

    assert root.exists() == (kind != "missing")


@pytest.mark.parametrize(
    "key", ["", "/", "/42", "42/", "42//1", "..", "42/../1", ".", "42/.", "42/..", "a\0b", "A.eml", "ä", "a\n", "..a"]
)
def test_what_is_not_a_key_is_refused(store, root, key):
    for attempt in (
        lambda: store.put(key, io.BytesIO(b"mail")),
        lambda: store.open(key),
        lambda: store.delete([key]),
    ):
        with pytest.raises(StoreError, match="not a key"):
            attempt()

    assert list(root.iterdir()) == []


def test_a_prefix_finds_no_other_account_that_begins_alike(store):
    store.put(message_key(4, 1, 1, 1), io.BytesIO(b"mail"))
    store.put(message_key(42, 1, 1, 1), io.BytesIO(b"mail"))

    assert [found.key for found in store.list("4/")] == [message_key(4, 1, 1, 1)]
    with pytest.raises(StoreError, match="end with a slash"):
        list(store.list("4"))


@pytest.mark.parametrize(
    "address",
    [
        "/srv/mail",
        "file://srv/mail",
        "file:///",
        "file:///srv/../etc",
        "file:///srv/%2e%2e/etc",
        "s3://",
        "ftp://host/mail",
        "s3://user:password@bucket/prefix",
        "s3://bucket?endpoint=x",
    ],
)
def test_a_wrong_address_is_refused_and_no_password_is_told(address):
    with pytest.raises(StoreAddressError, match="ROTA_MAIL_STORE") as told:
        check_address(address)

    assert "password@" not in str(told.value)


def test_no_store_is_refused():
    with pytest.raises(StoreAddressError, match="is not set"):
        open_store(None)


def test_a_local_address_opens_a_local_store(root):
    store = open_store(f"file://{root}")

    assert isinstance(store, LocalStore)
    assert store.root == root
    assert open_store(f"file://{root}") is store
