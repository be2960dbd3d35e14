"""A real TUF repository in memory: root 2 of 3, 256 hash bins, consistent snapshots."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

ROLES = ("timestamp", "snapshot", "targets")


class TufRepository:
    """Publishes a new consistent snapshot at each :meth:`publish`."""

    def __init__(self, *, lifetime: timedelta = timedelta(days=7)) -> None:
        self.lifetime = lifetime
        self.root_signers = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.signers = {role: CryptoSigner.generate_ed25519() for role in (*ROLES, "bins")}
        self.metadata: dict[str, bytes] = {}
        self.targets: dict[str, bytes] = {}
        self._bins: dict[str, Targets] = {}
        self._timestamp_version = 0
        self._snapshot = Snapshot(version=1)
        self._snapshot_version = 0
        self._start()

    @property
    def root(self) -> bytes:
        """What a device embeds."""
        return self.metadata["1.root.json"]

    def add_target(self, path: str, content: bytes, *, description: TargetFile | None = None) -> None:
        """Take a target in; ``description`` may lie about it."""
        self.add_targets({path: content}, description=description)

    def add_targets(self, targets: dict[str, bytes], *, description: TargetFile | None = None) -> None:
        changed: set[str] = set()
        for path, content in targets.items():
            name = self._succinct.get_role_for_target(path)
            info = description or TargetFile.from_data(path, content, ["sha256"])
            self._bins[name].targets[path] = info
            pure = PurePosixPath(path)
            digest = hashlib.sha256(content).hexdigest()
            self.targets[str(pure.with_name(f"{digest}.{pure.name}"))] = content
            changed.add(name)
        for name in changed:
            self._bins[name].version += 1
            self._sign_bin(name)
        self.publish()

    def publish(self) -> None:
        """Sign a new snapshot and timestamp."""
        self._snapshot_version += 1
        self._snapshot.version = self._snapshot_version
        self._snapshot.expires = self._expires()
        name = f"{self._snapshot.version}.snapshot.json"
        self.metadata[name] = self._signed(self._snapshot, [self.signers["snapshot"]])
        self._timestamp_version += 1
        timestamp = Timestamp(
            version=self._timestamp_version,
            expires=self._expires(),
            snapshot_meta=MetaFile(version=self._snapshot.version),
        )
        self.metadata["timestamp.json"] = self._signed(timestamp, [self.signers["timestamp"]])

    def _start(self) -> None:
        root = Root(version=1, expires=self._expires(days=365), consistent_snapshot=True)
        for signer in self.root_signers:
            root.add_key(signer.public_key, "root")
        root.roles["root"].threshold = 2
        for role in ROLES:
            root.add_key(self.signers[role].public_key, role)
        self.metadata["1.root.json"] = self._signed(root, self.root_signers[:2])
        key = self.signers["bins"].public_key
        self._succinct = SuccinctRoles([key.keyid], 1, 8, "bins")
        targets = Targets(version=1, expires=self._expires(days=365))
        targets.delegations = Delegations({key.keyid: key}, succinct_roles=self._succinct)
        self.metadata["1.targets.json"] = self._signed(targets, [self.signers["targets"]])
        self._snapshot.meta["targets.json"] = MetaFile(version=1)
        for name in self._succinct.get_roles():
            self._bins[name] = Targets(version=1, expires=self._expires(days=365))
            self._sign_bin(name)
        self.publish()

    def _sign_bin(self, name: str) -> None:
        signed = self._bins[name]
        self.metadata[f"{signed.version}.{name}.json"] = self._signed(signed, [self.signers["bins"]])
        self._snapshot.meta[f"{name}.json"] = MetaFile(version=signed.version)

    def _expires(self, *, days: int = 0) -> datetime:
        return (datetime.now(UTC) + (timedelta(days=days) if days else self.lifetime)).replace(microsecond=0)

    @staticmethod
    def _signed(signed: Root | Timestamp | Snapshot | Targets, signers: list[CryptoSigner]) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()
