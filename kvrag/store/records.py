"""What a packet store tells about itself: plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from kvrag.packet import PacketHeader, PacketKey

__all__ = ["PacketRow", "Problem", "ProblemKind", "RepairReport", "ScopeStat", "StoreStat", "TierStat", "Upload"]

ProblemKind = Literal["corrupt", "index", "mismatch", "missing", "orphan", "stray", "temporary", "unreadable"]


@dataclass(frozen=True)
class PacketRow:
    """What the index knows about one packet.

    Attributes:
        key: the packet's name.
        scope: digest of its scope.
        identity: digest of its identity.
        namespace: the tenant it belongs to.
        recipe: digest of its recipe.
        tokens: rows `T` a prompt gains by attaching it; 0 while no more is known than that a remote lists it.
        bytes: size of its file.
        created: seconds since the epoch.
        remote: which remote has a copy of the file; empty when none has.
        texts: number of texts that lead to it.
        first_text: the number of the first of these, which rises from text to text as they become known.
    """

    key: PacketKey
    scope: str
    identity: str
    namespace: str
    recipe: str
    tokens: int
    bytes: int
    created: float = field(compare=False)  # two writers of one packet may differ in it
    remote: str = field(default="", compare=False)
    texts: int = field(default=0, compare=False)
    first_text: int = field(default=0, compare=False)

    def differences(self, other: "PacketRow") -> list[str]:
        """Names of the fields that make two rows unequal."""
        return [
            each.name for each in fields(self) if each.compare and getattr(self, each.name) != getattr(other, each.name)
        ]

    @classmethod
    def of(cls, header: PacketHeader, size: int, remote: str = "") -> "PacketRow":
        """The row of a packet file with this header and `size` in bytes, of which `remote` has a copy."""
        return cls(
            key=PacketKey(header.key),
            scope=header.scope.digest,
            identity=header.identity.digest,
            namespace=header.namespace,
            recipe=header.recipe.digest,
            tokens=header.shape[3],
            bytes=size,
            created=header.created,
            remote=remote,
        )


@dataclass(frozen=True)
class Upload:
    """An object that this store has brought to a remote.

    Attributes:
        key: of the packet.
        identity: digest of its identity.
        namespace: the tenant it belongs to.
        bytes: size of the object.
        at: when it was uploaded last, in seconds since the epoch.
    """

    key: PacketKey
    identity: str
    namespace: str
    bytes: int
    at: float


@dataclass(frozen=True)
class ScopeStat:
    """Number of packets and bytes on disk of one namespace and identity."""

    packets: int
    bytes: int


@dataclass(frozen=True)
class TierStat:
    """One tier, and what this process has asked of it.

    Attributes:
        bytes: of the packets in it; of the remote those that this store knows of.
        capacity: bytes it may take, None without a limit.
        hits: packets that were found in it.
        evictions: packets that had to make room.
        corrupt: packets whose bytes were not what they claimed to be.
    """

    bytes: int
    capacity: int | None
    hits: int
    evictions: int
    corrupt: int


@dataclass(frozen=True)
class StoreStat:
    """Size of a store, and what this process has asked of it.

    Attributes:
        packets: in the index.
        bytes: of their files, wherever these are.
        texts: that lead to packets.
        scopes: the same by `(namespace, identity digest)`.
        memory_bytes: of packets held in host memory by this process.
        hits: packets that were there when asked for, in whatever tier.
        misses: packets that were not, corrupt ones included.
        corrupt: files put into quarantine, and bad objects of the remote.
        tiers: `memory`, `disk` and, if there is one, `remote`, the fastest first.
        pending_uploads: packets that the remote does not have yet.
        remote_failures: how often the remote failed, by reason.
    """

    packets: int
    bytes: int
    texts: int
    scopes: Mapping[tuple[str, str], ScopeStat]
    memory_bytes: int
    hits: int
    misses: int
    corrupt: int
    tiers: Mapping[str, TierStat]
    pending_uploads: int
    remote_failures: Mapping[str, int]


@dataclass(frozen=True)
class Problem:
    """One thing that `verify` found.

    Attributes:
        kind: `corrupt` (bytes are not what they claim to be), `index` (the index itself is damaged), `mismatch` (a good
            file whose row says otherwise), `missing` (a row without a file), `orphan` (a good file without a row),
            `temporary` (left by a writer that died), `stray` (not a file of this store; left alone), `unreadable` (the
            disk refuses; left alone).
        path: the file it is about.
        message: what was expected and what was found.
        key: the packet's name, where it has one.
    """

    kind: ProblemKind
    path: Path
    message: str
    key: PacketKey | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.message}"


@dataclass(frozen=True)
class RepairReport:
    """What `repair` did.

    Attributes:
        adopted: packets whose row was written again from their file; their texts must be registered again.
        quarantined: files moved into the quarantine folder.
        dropped: rows without a file, taken out of the index.
        swept: temporary files of dead writers, deleted.
        broken_index: where the damaged index was moved, None when it was sound.
    """

    adopted: int = 0
    quarantined: int = 0
    dropped: int = 0
    swept: int = 0
    broken_index: Path | None = None
