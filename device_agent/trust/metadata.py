"""The tenant's TUF repository as this device sees it.

python-tuf's client does the workflow of the specification (section 5). Around it stand what it
does not cover: version floors and a time floor outside its cache (a power cut may zero the cache),
an embedded root at every start, and downloads with limits of rate and size.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError, SlowRetrievalError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from device_agent.errors import AgentError, DownloadTooSlow, Refused, TransportError, UntrustedMetadata

Fetch = Callable[[str], Iterator[bytes]]
_TOP_LEVEL: tuple[tuple[str, type[Any]], ...] = (
    ("root", Root),
    ("timestamp", Timestamp),
    ("snapshot", Snapshot),
    ("targets", Targets),
)


class Floors(Protocol):
    """Versions and a time below which nothing is believed; they outlive the cache."""

    def versions(self) -> Mapping[str, int]: ...
    def raise_versions(self, versions: Mapping[str, int]) -> None: ...
    def time_floor(self) -> int: ...
    def raise_time(self, now: int) -> None: ...


@dataclass(frozen=True)
class TrustedTarget:
    """A target that verified: its bytes, and what the metadata says of it."""

    path: str
    sha256: str
    length: int
    content: bytes


def verify_root(data: bytes) -> None:
    """Check that ``data`` is TUF root metadata, signed by enough of the root keys that it names itself.

    This finds a wrong or damaged file; whether the root is the tenant's own is for people to know.
    Expiry does not matter: an expired root is where the way to a newer one starts (TUF 1.0, section 5.3).

    Raises:
        UntrustedMetadata: if it is not.
    """
    with _as_agent_errors():
        metadata = Metadata[Root].from_bytes(data)
        if not isinstance(metadata.signed, Root):
            raise UntrustedMetadata(f"this is {metadata.signed.type} metadata, not root metadata")
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)


class Repository:
    """Refresh first, then ask for targets; one refresh per instance (as python-tuf has it).

    Args:
        folder: the cache; may be lost at any time.
        root: the embedded root's bytes.
        metadata: opens ``metadata/<name>`` for reading.
        target: opens ``targets/<path>`` for reading.
        floors: kept in SQLite.
        clock: Unix seconds.

    Raises:
        UntrustedMetadata: if the embedded root is no valid root.
    """

    def __init__(
        self,
        folder: Path,
        *,
        root: bytes,
        metadata: Fetch,
        target: Fetch,
        floors: Floors,
        clock: Callable[[], float],
    ) -> None:
        self._metadata_dir = folder / "metadata"
        self._floors = floors
        self._clock = clock
        for path in (self._metadata_dir, folder / "targets"):
            path.mkdir(parents=True, exist_ok=True)
        with _as_agent_errors():
            self._updater = Updater(
                str(self._metadata_dir),
                _METADATA_URL,
                target_dir=str(folder / "targets"),
                target_base_url=_TARGET_URL,
                fetcher=_Fetcher(metadata, target),
                config=UpdaterConfig(prefix_targets_with_hash=True),
                bootstrap=root,
            )

    @property
    def now(self) -> float:
        """The clock, but never before a time at which metadata was already found valid."""
        return max(self._clock(), float(self._floors.time_floor()))

    def refresh(self) -> None:
        """Fetch and verify root, timestamp, snapshot and targets; hold them to the floors.

        Raises:
            UntrustedMetadata: if a signature, version, digest or expiry does not hold.
            TransportError: if they could not be fetched.
        """
        with _as_agent_errors():
            self._updater.refresh()
            top_level = {role: self._load(role, kind) for role, kind in _TOP_LEVEL}
        versions = {role: signed.version for role, signed in top_level.items()}
        snapshot: Snapshot = top_level["snapshot"]
        for name, info in snapshot.meta.items():
            versions[name.removesuffix(".json")] = info.version
        self._hold_to_floors(versions)
        self._hold_to_time(top_level)
        self._floors.raise_versions(versions)
        self._floors.raise_time(int(self._clock()))

    def find(self, path: str) -> tuple[str, int] | None:
        """SHA-256 and length of a target, or None if the repository does not have it.

        Raises:
            UntrustedMetadata, TransportError: as for :meth:`refresh`.
        """
        with _as_agent_errors():
            info = self._updater.get_targetinfo(path)
        return (info.hashes.get("sha256", ""), info.length) if info else None

    def fetch(self, path: str) -> TrustedTarget:
        """A target's verified bytes, from the cache where they are still intact.

        Raises:
            UntrustedMetadata: if it does not exist or its bytes differ.
            TransportError: if it could not be fetched.
        """
        with _as_agent_errors():
            info = self._updater.get_targetinfo(path)
            if info is None or "sha256" not in info.hashes:
                raise UntrustedMetadata(f"the repository has no target {path} with a SHA-256")
            cached = self._updater.find_cached_target(info) or self._updater.download_target(info)
            content = Path(cached).read_bytes()
        return TrustedTarget(path=path, sha256=info.hashes["sha256"], length=info.length, content=content)

    def _load(self, role: str, kind: type[Any]) -> Any:
        metadata = Metadata[kind].from_file(str(self._metadata_dir / f"{role}.json"))  # type: ignore[valid-type]
        return metadata.signed

    def _hold_to_floors(self, versions: Mapping[str, int]) -> None:
        for role, floor in self._floors.versions().items():
            if role in versions and versions[role] < floor:
                raise UntrustedMetadata(f"{role} went back from version {floor} to {versions[role]}")

    def _hold_to_time(self, top_level: Mapping[str, Any]) -> None:
        reference = datetime.datetime.fromtimestamp(self.now, tz=datetime.UTC)
        for role, signed in top_level.items():
            if signed.is_expired(reference):
                raise UntrustedMetadata(f"{role} expired {signed.expires}; the device's clock went back")


_METADATA_URL = "metadata/"
_TARGET_URL = "targets/"


class _Fetcher(FetcherInterface):
    """Goes through the agent's transport, which bounds time, rate and size."""

    def __init__(self, metadata: Fetch, target: Fetch) -> None:
        self._metadata = metadata
        self._target = target

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            if url.startswith(_METADATA_URL):
                yield from self._metadata(url.removeprefix(_METADATA_URL))
            else:
                yield from self._target(url.removeprefix(_TARGET_URL))
        except Refused as error:
            raise DownloadHTTPError(str(error), error.status) from error
        except DownloadTooSlow as error:
            raise SlowRetrievalError(str(error)) from error
        except TransportError as error:
            raise DownloadError(str(error)) from error


@contextmanager
def _as_agent_errors() -> Iterator[None]:
    """Turns python-tuf's errors into ours: not to be trusted, or not to be had."""
    try:
        yield
    except RepositoryError as error:
        raise UntrustedMetadata(f"TUF metadata refused: {error}") from error
    except DownloadError as error:
        if isinstance(error.__cause__, TransportError):
            raise error.__cause__ from error
        raise UntrustedMetadata(f"TUF download refused: {error}") from error
    except OSError as error:
        raise AgentError(f"the TUF cache cannot be used: {error}") from error
