"""Where a packet is on the device."""

from dataclasses import dataclass, field

import torch

from kvrag.attach.lane import Place
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

    def __post_init__(self) -> None:
        _, _, heads, tokens, dim = self.shape
        head = tokens * dim
        self._origin = self.arena.data_ptr()
        self._strides = heads * head, head, 2 * heads * head, tokens

    @property
    def place(self) -> Place:
        """Where the packet is now, without a view of it; ask again before every pass."""
        return self._origin + self.address, *self._strides

    @property
    def begin(self) -> int:
        """Elements from the arena's start; compaction changes it."""
        return self.address // self.arena.itemsize

    @property
    def kv(self) -> torch.Tensor:
        """A view `[L, 2, H, T, D]` of where the packet is now; ask again before every pass."""
        return self.arena.narrow(0, self.begin, self.shape.numel()).view(self.shape)
