"""Where a packet is on the device."""

from dataclasses import dataclass, field

import torch
from kvrag_kernels.packet_attention.encoded import FORMS, expand

from kvrag.attach.lane import Place
from kvrag.packet import Packet, PacketKey

__all__ = ["Slot"]


@dataclass(eq=False)
class Slot:
    """A packet's place in the pool's arena, its own for as long as it is held.

    Attributes:
        key: of the packet.
        shape: `[L, 2, H, T, D]` of keys and values.
        form: of the packet.
        stored: shape of the packet's data.
        address: bytes from the arena's start; compaction changes it.
        size: bytes taken, a multiple of 256.
        arena: the pool's.
    """

    key: PacketKey
    shape: torch.Size
    form: str
    stored: torch.Size
    address: int
    size: int
    arena: torch.Tensor = field(repr=False)

    def __post_init__(self) -> None:
        _, _, heads, tokens, dim = self.shape
        head = tokens * dim
        self._origin = self.arena.data_ptr()
        layer = 2 * heads * head
        in_bytes = self.form != "raw"
        layer_stride, scales = (self.stored[1], layer) if in_bytes else (layer, 0)
        self._strides = heads * head, head, layer_stride, scales, FORMS.index(self.form), tokens

    @classmethod
    def of(cls, packet: Packet, address: int, size: int, arena: torch.Tensor) -> "Slot":
        """A place for a packet."""
        return cls(packet.key, packet.shape, packet.form, packet.data.shape, address, size, arena)

    @property
    def place(self) -> Place:
        """Where the packet is now, without a view of it; ask again before every pass."""
        return self._origin + self.address, *self._strides

    @property
    def begin(self) -> int:
        """Elements from the arena's start; compaction changes it."""
        return self.address // self.arena.itemsize

    @property
    def data(self) -> torch.Tensor:
        """A view of where the packet's data are now; ask again before every pass."""
        if self.form == "raw":
            return self.arena.narrow(0, self.begin, self.shape.numel()).view(self.shape)
        return self.arena.view(torch.uint8).narrow(0, self.address, self.stored.numel()).view(self.stored)

    def keys_in(self, layers: range) -> torch.Tensor:
        """Keys `[l, H, T, D]` of layers that follow each other, likewise."""
        data, shape = self.data[layers.start : layers.stop], torch.Size((len(layers), *self.shape[1:]))
        return (data if self.form == "raw" else expand(data, shape, self.form, self.arena.dtype))[:, 0]

    @property
    def kv(self) -> torch.Tensor:
        """Keys and values `[L, 2, H, T, D]`: a view of where they are now, or a copy if they are stored in bytes."""
        return self.data if self.form == "raw" else expand(self.data, self.shape, self.form, self.arena.dtype)
