"""One contract for both storages: the real S3 and the folder that stands in for it."""

from __future__ import annotations

import hashlib
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from inference.errors import StorageUnavailable
from inference.storage import KeyTaken, ObjectMissing, Storage
from inference.testing import DirectoryStorage


def real(address: dict[str, str], **changes: str) -> Storage:
    return Storage(
        **{
            "endpoint_url": address["S3_ENDPOINT_URL"],
            "bucket": address.get("S3_BUCKET", "zoetrope"),
            "access_key": address["S3_ACCESS_KEY"],
            "secret_key": address["S3_SECRET_KEY"],
            "prefix": f"storage-tests/{uuid.uuid4().hex}/",
        }
        | changes
    )


@pytest.fixture(params=["s3", "folder"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return DirectoryStorage(tmp_path / "storage")
    return real(request.getfixturevalue("s3_address"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def test_a_file_comes_back_as_it_was_put(storage, file, tmp_path):
    stored = storage.put_file("a/b.mp4", file, content_type="video/mp4")
    assert stored.size_bytes == 256_000
    assert stored.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert storage.stat("a/b.mp4") == stored
    storage.get_file("a/b.mp4", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    size, blocks = storage.open("a/b.mp4")
    assert (size, b"".join(blocks)) == (256_000, file.read_bytes())


def test_a_key_is_written_once(storage, file, tmp_path):
    storage.put_file("a", file)
    other = tmp_path / "other"
    other.write_bytes(b"late")
    with pytest.raises(KeyTaken):
        storage.put_file("a", other)
    with pytest.raises(KeyTaken):
        storage.put_bytes("a", b"late")
    assert storage.stat("a").size_bytes == 256_000


def test_putting_the_same_again_is_putting_it_once(storage, file):
    assert storage.put_file("a", file) == storage.put_file("a", file)
    assert storage.put_bytes("b", b"x") == storage.put_bytes("b", b"x")


def test_what_was_never_put_is_missing(storage, tmp_path):
    assert storage.stat("nothing") is None
    assert not storage.exists("nothing")
    with pytest.raises(ObjectMissing):
        storage.get_file("nothing", tmp_path / "x")
    with pytest.raises(ObjectMissing):
        storage.open("nothing")


def test_deleting_is_silent_about_what_is_gone(storage, file):
    storage.put_file("a", file)
    storage.delete(["a", "never"])
    storage.delete([])
    assert not storage.exists("a")


def test_a_listing_holds_what_begins_with_the_prefix(storage):
    for key in ("jobs/1/a", "jobs/1/b", "jobs/10/a", "other"):
        storage.put_bytes(key, b"12345")
    listed = list(storage.list("jobs/1/"))
    assert [entry.key for entry in listed] == ["jobs/1/a", "jobs/1/b"]
    assert listed[0].size_bytes == 5
    assert abs(listed[0].modified_at.timestamp() - time.time()) < 60
    assert [entry.key for entry in storage.list("nothing")] == []


def test_a_working_storage_says_so(storage):
    storage.check()


# --------------------------------------------------------------------- S3 alone


@pytest.fixture
def s3_storage(s3_address: dict[str, str]) -> Storage:
    return real(s3_address)


def test_a_signed_link_serves_the_file_under_its_name(s3_storage):
    s3_storage.put_bytes("j/1.mp4", b"0123456789", content_type="video/mp4")
    link = s3_storage.presign("j/1.mp4", seconds=60, filename='a"b\r\nc/..mp4')
    answer = httpx.get(link)
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-disposition"] == 'inline; filename="a_b__c_..mp4"'
    part = httpx.get(link, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")


def test_a_signed_link_ends(s3_storage):
    s3_storage.put_bytes("a", b"x")
    link = s3_storage.presign("a", seconds=1)
    time.sleep(2.1)
    assert httpx.get(link).status_code == 403


def test_without_its_signature_a_link_is_worth_nothing(s3_storage):
    s3_storage.put_bytes("a", b"secret")
    link = s3_storage.presign("a", seconds=60)
    bare, _, query = link.partition("?")
    bucket = bare.rsplit("/", 4)[0]
    assert httpx.get(bare).status_code == 403
    assert httpx.get(bucket).status_code == 403
    assert httpx.get(f"{bare}x?{query}").status_code == 403
    assert httpx.put(link, content=b"mine").status_code == 403
    assert httpx.delete(link).status_code == 403


def test_links_lead_to_the_public_endpoint(s3_address):
    storage = real(s3_address, public_endpoint_url="https://media.example.com")
    link = storage.presign("a.mp4", seconds=60)
    assert link.startswith("https://media.example.com/")


def test_making_a_link_asks_nobody():
    nowhere = real(
        {
            "S3_ENDPOINT_URL": "http://127.0.0.1:9",
            "S3_ACCESS_KEY": "a",
            "S3_SECRET_KEY": "b",
        }
    )
    assert "X-Amz-Signature" in nowhere.presign("a", seconds=60)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        yield place.getsockname()[1]


@pytest.mark.parametrize("how", ["closed", "silent"])
def test_an_absent_service_is_an_outage_within_bounded_time(
    how, silent_port, file, monkeypatch
):
    monkeypatch.setattr("inference.storage.READ_SECONDS", 0.3)
    port = silent_port if how == "silent" else 9
    storage = real(
        {
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "S3_ACCESS_KEY": "a",
            "S3_SECRET_KEY": "b",
        }
    )
    calls = (
        lambda: storage.put_file("a", file),
        lambda: storage.get_file("a", file.with_name("b")),
        lambda: storage.delete(["a"]),
        lambda: list(storage.list()),
        storage.check,
    )
    started = time.monotonic()
    for call in calls:
        with pytest.raises(StorageUnavailable) as outage:
            call()
        assert not outage.value.counts
    assert time.monotonic() - started < 45


def test_a_wrong_key_is_an_outage_not_a_missing_file(s3_address, tmp_path):
    storage = real(s3_address, secret_key="wrong")
    with pytest.raises(StorageUnavailable):
        storage.get_file("a", tmp_path / "x")


def test_an_object_that_is_not_there_in_full_is_not_believed(s3_storage, monkeypatch):
    monkeypatch.setattr(type(s3_storage), "stat", lambda *_: None)
    with pytest.raises(StorageUnavailable, match="not there"):
        s3_storage.put_bytes("a", b"x")


def test_a_bucket_is_made_once(s3_address):
    storage = real(s3_address, bucket=f"made-{uuid.uuid4().hex[:12]}")
    with pytest.raises(ObjectMissing):
        storage.check()
    storage.make_bucket()
    storage.check()
    storage.put_bytes("a", b"a")
    with pytest.raises(StorageUnavailable):
        storage.make_bucket()
