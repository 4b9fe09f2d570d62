"""What host memory, disk and a remote object store have in common."""

from typing import Protocol

from kvrag.packet import Packet, PacketKey

__all__ = ["Tier"]


class Tier(Protocol):
    """A place that packets are read from; faster ones are asked first. Thread-safe.

    How packets get into it is no part of the contract, since every tier takes something else: host memory what was
    read, the disk what was computed, the remote a file that is on disk already.

    Attributes:
        name: what metrics call it.
        capacity: bytes it may take; None when it has no limit. What is pinned stays even beyond it.
    """

    name: str
    capacity: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of the packets in it."""
        ...

    def get(self, key: PacketKey) -> Packet | None:
        """The packet, every byte checked; None when it is not there, not intact or cannot be read."""
        ...

    def has(self, key: PacketKey) -> bool:
        """Whether the packet is there as far as is known on this machine, without reading it."""
        ...

    def discard(self, key: PacketKey) -> None:
        """Delete the packet from this tier; nothing happens when it is not there."""
        ...
