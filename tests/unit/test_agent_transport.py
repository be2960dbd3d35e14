"""The agent's HTTP: limits, retries, tokens, protocol versions; against a real server."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.errors import (
    ConfigError,
    DownloadTooSlow,
    ProtocolUnsupported,
    Refused,
    ResponseTooLarge,
    ServerUnreachable,
    TransportError,
)
from device_agent.protocol import PROTOCOL_VERSION
from device_agent.transport import Backoff, DeviceApi, DeviceKey, HttpClient, jittered
from tests.simulators.artifacts import sha256
from tests.simulators.device_server import PROVISIONING_KEY, DeviceServer

BLOB = os.urandom(300_000)


@pytest.fixture
def server() -> Iterator[DeviceServer]:
    with DeviceServer() as server:
        server.blobs[sha256(BLOB)] = BLOB
        yield server


@pytest.fixture
def key(tmp_path: Path) -> DeviceKey:
    return DeviceKey.load_or_create(tmp_path / "device.key")


def client(url: str, **arguments: object) -> HttpClient:
    settings = {"timeout_s": 5.0, "minimum_rate_bytes_per_s": 1000, "backoff_s": lambda retry: 0.0}
    return HttpClient(url, **{**settings, **arguments})  # type: ignore[arg-type]


def enrolled(server: DeviceServer, key: DeviceKey, **arguments: object) -> DeviceApi:
    api = DeviceApi(client(server.url, **arguments), key)
    api.identify(api.enroll(provisioning_key=PROVISIONING_KEY, name="test").device)
    return api


def read(server: DeviceServer, api: DeviceApi, *, size_bytes: int = len(BLOB)) -> bytes:
    return b"".join(api.blob(sha256(BLOB), size_bytes=size_bytes))


class TestKey:
    def test_it_is_private_and_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "device.key"
        first = DeviceKey.load_or_create(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert DeviceKey.load_or_create(path).public == first.public

    def test_one_that_others_may_read_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "device.key"
        DeviceKey.load_or_create(path)
        path.chmod(0o640)
        with pytest.raises(ConfigError, match="chmod 600"):
            DeviceKey.load_or_create(path)

    def test_something_else_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "device.key"
        path.touch(mode=0o600)
        with pytest.raises(ConfigError, match="not a private key"):
            DeviceKey.load_or_create(path)


class TestIdentity:
    def test_enrolling_again_gives_the_same_device(self, server: DeviceServer, key: DeviceKey) -> None:
        api = DeviceApi(client(server.url), key)
        devices = {api.enroll(provisioning_key=PROVISIONING_KEY, name="x").device for _ in range(2)}
        assert len(devices) == 1

    def test_a_wrong_provisioning_key(self, server: DeviceServer, key: DeviceKey) -> None:
        with pytest.raises(Refused, match="ask the operator") as caught:
            DeviceApi(client(server.url), key).enroll(provisioning_key="pfk_no", name="x")
        assert (caught.value.code, caught.value.status) == ("invalid_provisioning_key", 403)

    def test_one_token_serves_many_calls(self, server: DeviceServer, key: DeviceKey) -> None:
        api = enrolled(server, key)
        for _ in range(3):
            api.desired("")
        assert server.calls["token"] == 1

    def test_a_token_is_renewed_before_it_expires(self, server: DeviceServer, key: DeviceKey) -> None:
        now = [0.0]
        api = DeviceApi(client(server.url), key, clock_s=lambda: now[0])
        api.identify(api.enroll(provisioning_key=PROVISIONING_KEY, name="x").device)
        api.desired("")
        now[0] = server.token_lifetime_s - 61
        api.desired("")
        assert server.calls["token"] == 1
        now[0] += 2
        api.desired("")
        assert server.calls["token"] == 2

    @pytest.mark.parametrize("call", ["desired", "blob"])
    def test_a_token_refused_is_renewed_once(self, server: DeviceServer, key: DeviceKey, call: str) -> None:
        api = enrolled(server, key)
        api.desired("")
        server.tokens.clear()  # the server was restarted with another secret
        if call == "desired":
            assert api.desired("") is not None
        else:
            assert read(server, api) == BLOB
        assert server.calls["token"] == 2

    def test_a_device_that_lost_its_place_is_told(self, server: DeviceServer, key: DeviceKey) -> None:
        api = enrolled(server, key)
        api.desired("")
        server.tokens.clear()
        server.enroll_state = "decommissioned"
        with pytest.raises(Refused) as caught:
            api.desired("")
        assert caught.value.status == 403

    def test_not_enrolled(self, server: DeviceServer, key: DeviceKey) -> None:
        with pytest.raises(ConfigError, match="not enrolled"):
            DeviceApi(client(server.url), key).desired("")


class TestProtocol:
    @pytest.mark.parametrize("version", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION, PROTOCOL_VERSION + 1])
    def test_one_version_apart_works(self, server: DeviceServer, key: DeviceKey, version: int) -> None:
        server.protocol = version
        assert enrolled(server, key).desired("") is not None

    def test_two_versions_apart_is_refused(self, server: DeviceServer, key: DeviceKey) -> None:
        server.protocol = PROTOCOL_VERSION + 2
        with pytest.raises(ProtocolUnsupported, match="update the older"):
            enrolled(server, key)

    def test_an_answer_of_something_else(self, server: DeviceServer, key: DeviceKey) -> None:
        server.protocol = None
        with pytest.raises(ProtocolUnsupported, match="is this address"):
            enrolled(server, key)

    def test_an_answer_of_another_shape(self, server: DeviceServer, key: DeviceKey) -> None:
        api = enrolled(server, key)
        server._desired = lambda headers: (200, {}, b"{}")  # type: ignore[method-assign]
        with pytest.raises(TransportError, match="not a Desired"):
            api.desired("")


class TestDesired:
    def test_unchanged_costs_nothing(self, server: DeviceServer, key: DeviceKey) -> None:
        api = enrolled(server, key)
        answer = api.desired("")
        assert answer is not None
        assert api.desired(answer[1]) is None
        server.assign()
        assert api.desired(answer[1]) is not None


class TestLimits:
    def test_a_blob_of_the_right_size(self, server: DeviceServer, key: DeviceKey) -> None:
        assert read(server, enrolled(server, key)) == BLOB

    def test_a_longer_one(self, server: DeviceServer, key: DeviceKey) -> None:
        with pytest.raises(ResponseTooLarge):
            read(server, enrolled(server, key), size_bytes=1000)

    def test_a_missing_one(self, server: DeviceServer, key: DeviceKey) -> None:
        with pytest.raises(Refused) as caught:
            list(enrolled(server, key).blob("0" * 64, size_bytes=10))
        assert caught.value.status == 404

    def test_a_connection_that_breaks(self, server: DeviceServer, key: DeviceKey) -> None:
        server.drop_after_blobs = 0
        with pytest.raises(ServerUnreachable, match="broke"):
            read(server, enrolled(server, key))

    def test_a_trickle_is_given_up(self, server: DeviceServer, key: DeviceKey) -> None:
        now = iter(range(0, 10_000, 20))  # 20 s between the pieces
        api = enrolled(server, key)
        slow = client(server.url, clock_s=lambda: float(next(now)), minimum_rate_bytes_per_s=10_000)
        with pytest.raises(DownloadTooSlow):
            list(slow.stream(f"blobs/{sha256(BLOB)}", max_bytes=len(BLOB), headers=api._authorization()))

    def test_a_stop_ends_a_download(self, server: DeviceServer, key: DeviceKey) -> None:
        stop = threading.Event()
        api = enrolled(server, key, wait=stop.wait)
        stream = api.blob(sha256(BLOB), size_bytes=len(BLOB))
        next(stream)
        stop.set()
        with pytest.raises(ServerUnreachable, match="stops"):
            list(stream)


class TestRetries:
    def test_a_server_that_is_unwell_is_asked_again(self, server: DeviceServer, key: DeviceKey) -> None:
        server.offline = True
        with pytest.raises(ServerUnreachable, match="503"):
            enrolled(server, key)
        assert server.calls["nonce"] == 3

    def test_a_server_that_comes_back_in_between(self, server: DeviceServer, key: DeviceKey) -> None:
        server.offline = True

        def backoff_s(retry: int) -> float:
            server.offline = False
            return 0.0

        assert enrolled(server, key, backoff_s=backoff_s).desired("") is not None

    def test_no_server_at_all(self, key: DeviceKey) -> None:
        with pytest.raises(ServerUnreachable, match="cannot be reached"):
            DeviceApi(client("http://127.0.0.1:9"), key).enroll(provisioning_key="x", name="x")

    def test_a_stop_ends_the_retries(self, key: DeviceKey) -> None:
        stop = threading.Event()
        stop.set()
        began = time.monotonic()
        with pytest.raises(ServerUnreachable):
            client("http://127.0.0.1:9", wait=stop.wait, backoff_s=lambda retry: 60.0).call("POST", "nonce")
        assert time.monotonic() - began < 30


class TestWaits:
    @pytest.mark.parametrize(("draw", "expected"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
    def test_the_interval_is_spread_by_a_fifth(self, draw: float, expected: float) -> None:
        assert jittered(10.0, lambda: draw) == pytest.approx(expected)

    def test_a_server_cannot_ask_for_a_storm(self) -> None:
        assert jittered(0.0, lambda: 0.5) > 0.1

    def test_backoff_grows_to_a_ceiling_and_starts_over(self) -> None:
        backoff = Backoff(lambda: 1.0, base_s=1.0, ceiling_s=5.0)
        assert [backoff.next_s() for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
        backoff.reset()
        assert backoff.next_s() == 1.0
