"""Where a store's bytes are."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvrag.errors import CorruptPacketError
from kvrag.packet import Identity, PacketKey
from kvrag.store.disk import DiskTier
from kvrag.store.format import read_header
from kvrag.store.index import Index
from kvrag.store.publishing import TEMPORARY

__all__ = ["FileUsage", "ScopeUsage", "StoreUsage", "measure"]


@dataclass(frozen=True)
class FileUsage:
    """Number of files and their bytes."""

    files: int
    bytes: int


@dataclass(frozen=True)
class ScopeUsage:
    """What one namespace takes for one identity.

    Attributes:
        namespace: the tenant.
        identity: digest of the identity.
        packets: their number.
        bytes: of their files.
        of: the identity itself, from the header of one of the packets; None when that cannot be read.
    """

    namespace: str
    identity: str
    packets: int
    bytes: int
    of: Identity | None


@dataclass(frozen=True)
class StoreUsage:
    """Where a store's bytes are.

    Attributes:
        scopes: by namespace and identity, the largest first.
        quarantine: files that were found bad.
        temporary: files that writers are at work on, or left.
        index: the index and its journal; damaged ones that were set aside too.
    """

    scopes: tuple[ScopeUsage, ...]
    quarantine: FileUsage
    temporary: FileUsage
    index: FileUsage

    @property
    def bytes(self) -> int:
        """Sum over everything."""
        files = (self.quarantine, self.temporary, self.index)
        return sum(scope.bytes for scope in self.scopes) + sum(part.bytes for part in files)


def measure(disk: DiskTier, index: Index) -> StoreUsage:
    """Add up a store's packets by their rows, and its other files by their sizes."""
    scopes = [
        ScopeUsage(namespace, identity, packets, size, _identity(disk, identity, key))
        for namespace, identity, packets, size, key in index.usage()
    ]
    return StoreUsage(
        scopes=tuple(sorted(scopes, key=lambda scope: (-scope.bytes, scope.namespace, scope.identity))),
        quarantine=_add_up(disk.quarantined.glob("*")),
        temporary=_add_up(path for path in disk.files() if path.suffix == TEMPORARY),
        index=_add_up(index.path.parent.glob(f"{index.path.name}*")),
    )


def _identity(disk: DiskTier, identity: str, key: PacketKey) -> Identity | None:
    with suppress(CorruptPacketError, OSError):
        return read_header(disk.path(identity, key)).identity
    return None


def _add_up(paths: Iterable[Path]) -> FileUsage:
    sizes = []
    for path in paths:
        with suppress(FileNotFoundError):
            sizes.append(os.lstat(path).st_size)
    return FileUsage(len(sizes), sum(sizes))
