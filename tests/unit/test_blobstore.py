"""The blob store keeps its promises in a folder and on an S3 server alike."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from blobstore import BlobError, BlobMissing, BlobStore, DigestMismatch, open_store

BIG = os.urandom(1 << 20) * 12  # more than one multipart part


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    if request.param == "folder":
        return open_store(f"file://{tmp_path}/blobs%20here")
    endpoint = request.getfixturevalue("s3_server")
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return open_store(f"s3://{bucket}/some/prefix")


def failing_stream() -> Iterator[bytes]:
    yield BIG
    raise ConnectionResetError("the client went away")


def test_bytes_round_trip(store: BlobStore) -> None:
    store.put_bytes(b"hello", key="a/b")
    assert store.get_bytes("a/b") == b"hello"
    assert store.size("a/b") == 5
    assert store.exists("a/b")


def test_overwriting_replaces_the_content(store: BlobStore) -> None:
    store.put_bytes(b"old", key="k")
    store.put_bytes(b"newer", key="k")
    assert store.get_bytes("k") == b"newer"


def test_file_and_pieces(store: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(BIG)
    store.put_file(path, key="big")
    pieces = list(store.iter_bytes("big", chunk_size=1 << 20))
    assert b"".join(pieces) == BIG
    assert len(pieces) > 1


def test_stream_answers_digest_and_size(store: BlobStore) -> None:
    digest, size = store.put_stream([BIG, b"tail"], key="s")
    assert digest == hashlib.sha256(BIG + b"tail").hexdigest()
    assert size == len(BIG) + 4 == store.size("s")


def test_empty_stream(store: BlobStore) -> None:
    assert store.put_stream([], key="empty") == (hashlib.sha256().hexdigest(), 0)
    assert store.get_bytes("empty") == b""


def test_interrupted_stream_leaves_nothing_visible(store: BlobStore) -> None:
    with pytest.raises((ConnectionResetError, BlobError)):
        store.put_stream(failing_stream(), key="x/never")
    assert not store.exists("x/never")
    assert list(store.list("")) == []


def test_missing(store: BlobStore, tmp_path: Path) -> None:
    assert store.size("none") is None
    assert not store.exists("none")
    with pytest.raises(BlobMissing):
        store.get_bytes("none")
    with pytest.raises(BlobMissing):
        list(store.iter_bytes("none"))
    with pytest.raises(BlobMissing):
        store.fetch("none", tmp_path / "out", sha256="0" * 64)
    assert not (tmp_path / "out").exists()


def test_fetch_checks_the_digest(store: BlobStore, tmp_path: Path) -> None:
    store.put_bytes(BIG, key="big")
    destination = tmp_path / "deep" / "out"
    with pytest.raises(DigestMismatch) as caught:
        store.fetch("big", destination, sha256="0" * 64)
    assert caught.value.found == hashlib.sha256(BIG).hexdigest()
    assert list(destination.parent.iterdir()) == []
    store.fetch("big", destination, sha256=hashlib.sha256(BIG).hexdigest())
    assert destination.read_bytes() == BIG


def test_delete_and_list(store: BlobStore) -> None:
    for key in ("a/1", "a/2", "ab/3"):
        store.put_bytes(b"x", key=key)
    assert sorted(store.list("a")) == ["a/1", "a/2"]
    assert sorted(store.list("")) == ["a/1", "a/2", "ab/3"]
    store.delete("a/1")
    store.delete("a/1")
    assert sorted(store.list("a/")) == ["a/2"]


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/./b", "a\\b", ".incoming/x"]
)
def test_keys_that_leave_the_store_are_refused(store: BlobStore, key: str) -> None:
    with pytest.raises(BlobError):
        store.put_bytes(b"x", key=key)
    with pytest.raises(BlobError):
        store.get_bytes(key)


def test_local_path_of_a_folder(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    store.put_bytes(b"x", key="a/b")
    path = store.local_path("a/b")
    assert path is not None
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize(
    "url", ["relative/folder", "file://host/folder", "gs://bucket", "s3://", "file:relative"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(BlobError):
        open_store(url)
