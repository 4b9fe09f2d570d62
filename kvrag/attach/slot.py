"""Where a packet is on the device."""

from dataclasses import dataclass, field

import torch

from kvrag.packet import PacketKey

__all__ = ["Slot"]


@dataclass(eq=False)
class Slot:
    """A packet's place in the pool's arena, its own for as long as it is held.

    Attributes:
        key: of the packet.
        shape: `[L, 2, H, T, D]`.
        address: bytes from the arena's start; compaction changes it.
        size: bytes taken, a multiple of 256.
        arena: the pool's.
    """

    key: PacketKey
    shape: torch.Size
    address: int
    size: int
    arena: torch.Tensor = field(repr=False)

    @property
    def begin(self) -> int:
        """Elements from the arena's start; compaction changes it."""
        return self.address // self.arena.itemsize

    @property
    def kv(self) -> torch.Tensor:
        """A view `[L, 2, H, T, D]` of where the packet is now; ask again before every pass."""
        return self.arena.narrow(0, self.begin, self.shape.numel()).view(self.shape)
