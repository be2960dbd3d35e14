"""The blob store against what it cannot be faster than (plain files) and against boto3 (S3)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.catalogue import Context
from benchmarks.errors import BenchmarkFailed
from benchmarks.figures import Figure
from blobstore import open_store

DESCRIPTION = "64 MiB blobs: folder against a plain durable copy, S3 API (moto) against boto3"
PREDICTION = """
Folder: a put costs one SHA-256 more than a durable copy, so about half its throughput; a verified fetch,
which reads through the library and hashes, about a quarter of a plain copy's. S3: both clients wait for the
server, which is written in Python, so a put is within 0.6 of boto3's and a get at least equal.
"""
PEERS = ("boto3==1.44.5",)

SIZE_BYTES = 64 * 2**20
ROUNDS = 5
BUCKET = "benchmark"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


def run(context: Context) -> list[Figure]:
    """Alternate ours and the other's, so that noise hits both; compare medians."""
    source = context.scratch / "source.bin"
    source.write_bytes(os.urandom(SIZE_BYTES))
    return [*_folder(context.scratch, source), *_s3(context, source)]


def _folder(scratch: Path, source: Path) -> list[Figure]:
    store = open_store((scratch / "blobs").as_uri())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    fetched, copied = scratch / "fetched.bin", scratch / "copied.bin"
    put, put_floor = _alternate(
        lambda number: store.put_file(source, key=f"folder/{number}"),
        lambda number: _durable_copy(source, scratch / f"floor-{number}.bin"),
    )
    fetch, fetch_floor = _alternate(
        lambda number: store.fetch(f"folder/{number}", fetched, sha256=digest),
        lambda _: _durable_copy(source, copied),
    )
    against = "a plain copy with fsync and rename, the floor"
    return [
        _ratio("folder_put_throughput_ratio", put_floor / put, 0.5, against),
        _ratio("folder_fetch_throughput_ratio", fetch_floor / fetch, 0.25, against),
    ]


def _s3(context: Context, source: Path) -> list[Figure]:
    if context.peer_python is None:
        raise BenchmarkFailed("the peers' environment is missing")
    with _s3_server() as endpoint:
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=endpoint)
        store = open_store(f"s3://{BUCKET}/ours")
        with _Peer(context.peer_python, endpoint, source) as peer:
            put, peer_put = _alternate(
                lambda number: store.put_file(source, key=f"s3/{number}"),
                lambda number: peer.call("put", number),
            )
            get, peer_get = _alternate(
                lambda number: store.get_bytes(f"s3/{number}"), lambda number: peer.call("get", number)
            )
    against = f"{PEERS[0]}, same server on loopback"
    return [
        _ratio("s3_put_throughput_ratio", peer_put / put, 0.6, against),
        _ratio("s3_get_throughput_ratio", peer_get / get, 1.0, against),
    ]


def _ratio(name: str, value: float, goal: float, against: str) -> Figure:
    return Figure(name=name, value=round(value, 2), goal=goal, better="higher", against=against)


def _alternate(ours: Callable[[int], object], theirs: Callable[[int], object]) -> tuple[float, float]:
    """Median seconds of both, a warm-up round left out."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for times, action in zip(seconds, (ours, theirs), strict=True):
            started = time.perf_counter()
            action(number)
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def _durable_copy(source: Path, destination: Path) -> None:
    temporary = destination.with_suffix(".part")
    with source.open("rb") as read, temporary.open("wb") as written:
        shutil.copyfileobj(read, written, 2**20)
        written.flush()
        os.fsync(written.fileno())
    temporary.replace(destination)
    folder = os.open(destination.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


PEER_PROGRAM = """
import sys, boto3
endpoint, bucket, source = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint)
print("ready", flush=True)
for line in sys.stdin:
    action, number = line.split()
    if action == "put":
        client.upload_file(source, bucket, f"peer/{number}")
    else:
        client.get_object(Bucket=bucket, Key=f"peer/{number}")["Body"].read()
    print("done", flush=True)
"""


class _Peer:
    """boto3 in its own environment; told what to do line by line, so that its start does not count."""

    def __init__(self, python: Path, endpoint: str, source: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), "-c", PEER_PROGRAM, endpoint, BUCKET, str(source)],
            env={**os.environ, **CREDENTIALS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("ready")

    def __enter__(self) -> _Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def call(self, action: str, number: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{action} {number}\n")
        self._process.stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line != word:
            raise BenchmarkFailed(f"boto3's process said {json.dumps(line)} instead of {word!r}")


@contextlib.contextmanager
def _s3_server() -> Iterator[str]:
    """A moto server on a free loopback port, with the bucket made."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _make_bucket(endpoint, deadline=time.monotonic() + 60)
        yield endpoint
    finally:
        process.terminate()
        process.wait(20)


def _make_bucket(endpoint: str, *, deadline: float) -> None:
    request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (OSError, urllib.error.URLError) as error:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"the S3 test server did not start: {error}") from error
            time.sleep(0.2)
