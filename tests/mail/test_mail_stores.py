"""The requirements of every store: the local store, and S3 with two different servers, moto's and rclone."""

import io
import os
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plugins.mail.store import (
    NoSuchObject,
    Store,
    StoreAddressError,
    StoreAway,
    StoreError,
    StoreRefused,
    message_key,
    open_store,
)
from tests.support.object_stores import BUCKET, ObjectStore, free_port, moto_server, rclone_server

KEY = message_key(42, 7, 1, 12_345)


@pytest.fixture(scope="module")
def moto() -> Iterator[ObjectStore]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory) -> Iterator[ObjectStore]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(params=["local", "moto", "rclone"])
def store(request, tmp_path, monkeypatch) -> Iterator[Store]:
    open_store.cache_clear()
    if request.param == "local":
        yield open_store(f"file://{tmp_path}")
        return
    use(request.getfixturevalue(request.param), monkeypatch)
    made = open_store(f"s3://{BUCKET}/inner/most")
    yield made
    made.delete(found.key for found in made.list())
    open_store.cache_clear()


def use(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new S3 stores use ``server``."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)


def read(store: Store, key: str = KEY) -> bytes:
    with store.open(key) as file:
        return file.read()


def test_what_is_put_is_what_is_read(store):
    content = bytes(range(256)) * 10

    store.put(KEY, io.BytesIO(content))

    assert read(store) == content


def test_a_message_of_no_bytes_is_one(store):
    store.put(KEY, io.BytesIO())

    assert read(store) == b""


def test_a_message_that_is_larger_than_one_part_of_an_upload_is_whole(store, tmp_path):
    content = os.urandom(1 << 20) * 13 + b"end"

    store.put(KEY, io.BytesIO(content))

    assert read(store) == content


def test_a_second_put_replaces_the_first(store):
    store.put(KEY, io.BytesIO(b"first, and longer"))
    store.put(KEY, io.BytesIO(b"second"))

    assert read(store) == b"second"
    assert [found.key for found in store.list()] == [KEY]


def test_a_file_is_stored_from_where_it_stands(store):
    file = io.BytesIO(b"fetched already, mail")
    file.seek(17)

    store.put(KEY, file)

    assert read(store) == b"mail"


def test_a_missing_message_has_an_error_of_its_own(store):
    with pytest.raises(NoSuchObject, match=KEY):
        store.open(KEY)


def test_what_is_deleted_is_gone_and_deleting_it_again_is_no_error(store):
    store.put(KEY, io.BytesIO(b"mail"))

    store.delete([KEY, message_key(42, 7, 1, 1)])
    store.delete([KEY])
    store.delete([])

    assert list(store.list()) == []
    with pytest.raises(NoSuchObject):
        store.open(KEY)


def test_a_listing_has_each_object_below_the_prefix_with_its_size_and_time(store):
    keys = [message_key(account, 7, 1, uid) for account in (4, 42) for uid in (1, 999, 1000)]
    for size, key in enumerate(keys):
        store.put(key, io.BytesIO(b"x" * size))

    listed = {found.key: found for found in store.list("42/")}

    assert set(listed) == set(keys[3:])
    assert [listed[key].size for key in keys[3:]] == [3, 4, 5]
    assert {found.key for found in store.list()} == set(keys)
    assert {found.key for found in store.list("42/7.1/0/")} == set(keys[3:5])
    now = datetime.now(UTC)
    assert all(now - timedelta(minutes=5) < found.written_at < now + timedelta(minutes=5) for found in listed.values())


def test_a_listing_of_what_is_not_there_is_empty(store):
    assert list(store.list("42/")) == []


def test_more_than_one_page_is_listed_and_deleted(store):
    keys = {message_key(42, 7, 1, uid) for uid in range(1100)}
    for key in keys:
        store.put(key, io.BytesIO(b"x"))

    assert {found.key for found in store.list()} == keys
    store.delete(found.key for found in store.list("42/"))

    assert list(store.list()) == []


def test_what_is_not_a_key_is_refused(store):
    for attempt in (
        lambda: store.put("../a", io.BytesIO(b"mail")),
        lambda: store.open("../a"),
        lambda: store.delete(["../a"]),
    ):
        with pytest.raises(StoreError, match="not a key"):
            attempt()
    with pytest.raises(StoreError, match="end with a slash"):
        list(store.list("4"))


def test_a_large_message_takes_little_memory(store):
    """The message has 31 MB, and the memory of Python objects is measured."""
    with open_zeros(31_000_000) as file:
        tracemalloc.start()
        try:
            store.put(KEY, file)
            with store.open(KEY) as stored:
                assert sum(map(len, iter(lambda: stored.read(1 << 20), b""))) == 31_000_000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak < 20 << 20


def open_zeros(size: int) -> io.BufferedReader:
    """Return a file of so many zeros that takes no space on the disk."""
    descriptor = os.memfd_create("zeros")
    os.ftruncate(descriptor, size)
    return os.fdopen(descriptor, "rb")


class TestS3:
    """S3 stores on a server."""

    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        open_store.cache_clear()
        yield
        open_store.cache_clear()

    def test_a_read_only_server_refuses_and_what_it_has_can_be_read(self, tmp_path, monkeypatch):
        with rclone_server(tmp_path) as server:
            use(server, monkeypatch)
            open_store(f"s3://{BUCKET}").put(KEY, io.BytesIO(b"older"))
        open_store.cache_clear()

        with rclone_server(tmp_path, "--read-only") as server:
            use(server, monkeypatch)
            store = open_store(f"s3://{BUCKET}")

            with pytest.raises(StoreAway):  # rclone answers with 500
                store.put(KEY, io.BytesIO(b"newer"))

            assert read(store) == b"older"

    def test_wrong_credentials_are_refused_and_told_without_the_key(self, rclone, monkeypatch):
        use(rclone, monkeypatch)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebody-elses-secret")

        with pytest.raises(StoreRefused) as told:
            open_store(f"s3://{BUCKET}").put(KEY, io.BytesIO(b"mail"))

        assert "give this service the right" in str(told.value)
        assert "somebody-elses-secret" not in repr(told.value.__cause__)

    def test_a_bucket_that_is_not_there_is_told(self, moto, monkeypatch):
        use(moto, monkeypatch)

        with pytest.raises(StoreError):
            open_store("s3://nowhere").put(KEY, io.BytesIO(b"mail"))

    def test_a_server_that_is_away_is_told_within_the_time_limit(self, monkeypatch):
        use(ObjectStore(f"http://127.0.0.1:{free_port()}"), monkeypatch)

        with pytest.raises(StoreAway):
            open_store(f"s3://{BUCKET}").put(KEY, io.BytesIO(b"mail"))

    def test_without_its_library_the_extra_is_named(self, monkeypatch):
        monkeypatch.setattr("plugins.mail.store.find_spec", lambda name: None)

        with pytest.raises(StoreAddressError, match=r"pip install 'rota\[mail\]'"):
            open_store(f"s3://{BUCKET}")


def test_two_prefixes_of_one_bucket_do_not_see_each_other(moto, monkeypatch):
    use(moto, monkeypatch)
    open_store.cache_clear()
    one, other = open_store(f"s3://{BUCKET}/one"), open_store(f"s3://{BUCKET}/other")

    one.put(KEY, io.BytesIO(b"mail"))

    assert list(other.list()) == []
    one.delete([KEY])
    open_store.cache_clear()


def test_a_local_store_needs_no_further_library(tmp_path: Path):
    assert open_store(f"file://{tmp_path}")
