"""One sequence on the device: the extents attached to it, and the rows computed for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from kvrag_kernels.packet_attention.encoded import RAW

from kvrag.packet import Packet

__all__ = ["Block", "Extent", "Geometry", "Lane", "Place"]

Place = tuple[int, int, int, int, int, int, int]
"""Where a block `[L, 2, H, T, D]` is whose tokens stand one behind the other: its address in bytes, the distance from
keys to values, the strides of heads and of layers in elements, the bytes from keys to scales and the number of its form
(both 0 of a raw block), and T. Elements of other forms are bytes."""


@dataclass(frozen=True)
class Geometry:
    """The shape of a model's cache.

    Attributes:
        layers: L.
        kv_heads: H.
        heads: HQ, a multiple of H.
        head_dim: D.
    """

    layers: int
    kv_heads: int
    heads: int
    head_dim: int

    @property
    def asking(self) -> range:
        """The layers in which a model looks up what it was asked for: behind two thirds of them, up to four fifths."""
        first = min(round(self.layers * 2 / 3), self.layers - 1)
        return range(first, max(first + 1, round(self.layers * 4 / 5)))

    def block(self, tokens: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """An uninitialised `[L, 2, H, tokens, D]`."""
        shape = (self.layers, 2, self.kv_heads, tokens, self.head_dim)
        return torch.empty(shape, dtype=dtype, device=device)


class Block(Protocol):
    """Keys and values that may be moved between two passes, such as a slot of a pool."""

    @property
    def kv(self) -> torch.Tensor:
        """`[L, 2, H, T, D]` where they are now."""
        ...

    @property
    def place(self) -> Place:
        """Where they are now."""
        ...

    def keys_in(self, layers: range) -> torch.Tensor:
        """Keys `[l, H, T, D]` of layers that follow each other."""
        ...


@dataclass(eq=False)  # frozen ones take three times as long to make, and a prompt has many
class Extent:
    """Immutable keys and values standing in a prompt.

    Attributes:
        block: `[L, 2, H, T, D]`, or what knows where they are.
        turn: positions by which queries turn back to meet these keys; 0 when the keys were rotated where they stand.
        seen_from: the lane's row from which on the extent is visible.
        score_scale: multiplies the scores of its tokens, besides the softmax scaling.
        merge_scale: extents of one merge scale are merged by log-sum-exp first, and the result's is multiplied by it
            before it meets the lane's own rows, whose scale is 1.
    """

    block: torch.Tensor | Block
    turn: int
    seen_from: int
    score_scale: float = 1.0
    merge_scale: float = 1.0

    @classmethod
    def of_packet(
        cls, packet: Packet, start: int, seen_from: int, block: torch.Tensor | Block, *scales: float
    ) -> "Extent":
        """The packet placed at position `start`, visible from the lane's row `seen_from` on.

        Args:
            packet: to attach.
            start: in the prompt.
            seen_from: the first row that sees it.
            block: the packet's numbers on the device.
            scales: score scale and merge scale, if they are not 1.
        """
        return cls(block, start - packet.offset, seen_from, *scales)

    @property
    def kv(self) -> torch.Tensor:
        """`[L, 2, H, T, D]`, for the next pass; a copy where the block is not raw."""
        return self.block if isinstance(self.block, torch.Tensor) else self.block.kv

    @property
    def place(self) -> Place:
        """Where the block is, for the next pass."""
        return _place(self.block) if isinstance(self.block, torch.Tensor) else self.block.place

    @property
    def tokens(self) -> int:
        """T."""
        return self.block.shape[3] if isinstance(self.block, torch.Tensor) else self.block.place[-1]

    def keys_in(self, layers: range) -> torch.Tensor:
        """Keys `[l, H, T, D]` of layers that follow each other."""
        if isinstance(self.block, torch.Tensor):
            return self.block[layers.start : layers.stop, 0]
        return self.block.keys_in(layers)

    @cached_property
    def keys(self) -> tuple[torch.Tensor, ...]:
        """One `[H, T, D]` view a layer, of a block that stays where it is."""
        return self.kv[:, 0].unbind(0)

    @cached_property
    def values(self) -> tuple[torch.Tensor, ...]:
        """One `[H, T, D]` view a layer, of a block that stays where it is."""
        return self.kv[:, 1].unbind(0)


class Lane:
    """Keys and values of one sequence: attached extents plus its own growing rows.

    Rows are numbered in the order they were computed; a row sees every extent with `seen_from` at most its number, and
    every earlier row.

    Args:
        geometry: of the model.
        capacity: rows to make room for; grows when needed.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(self, geometry: Geometry, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.extents: list[Extent] = []
        self.length = 0
        self._geometry = geometry
        self._own = geometry.block(max(capacity, 1), dtype, device)

    def attach(self, extents: Sequence[Extent]) -> None:
        """Give immutable extents their places; O(1) each, nothing is copied."""
        self.extents.extend(extents)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` more rows."""
        needed = self.length + rows
        if needed > self._own.shape[3]:
            grown = self._geometry.block(max(needed, 2 * self._own.shape[3]), self._own.dtype, self._own.device)
            grown[:, :, :, : self.length] = self._own[:, :, :, : self.length]
            self._own = grown

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put this pass's `[H, S, D]` behind the rows the lane already has; `advance` makes them its own."""
        rows = slice(self.length, self.length + key.shape[1])
        self._own[layer, 0, :, rows] = key
        self._own[layer, 1, :, rows] = value

    def advance(self, rows: int) -> None:
        """Keep the `rows` rows written last."""
        self.length += rows

    def select(self, rows: torch.Tensor) -> None:
        """Go on with only these of the block's rows `[n]`, none of which is computed yet, and as much room behind them.

        Args:
            rows: ascending; those that are not there move up.
        """
        assert not self.length, "rows that were computed have numbers"
        whole = self._own
        self._own = torch.empty_like(whole)
        self._own[:, :, :, : len(rows)] = whole[:, :, :, rows]

    def own(self, first: int, last: int) -> torch.Tensor:
        """A view `[L, 2, H, last - first, D]` of computed rows."""
        return self._own[:, :, :, first:last]

    def place(self, rows: int) -> Place:
        """Where the first `rows` rows are, computed or reserved."""
        return *_place(self._own)[:-1], rows


def _place(kv: torch.Tensor) -> Place:
    layer, half, head, *token = kv.stride()
    if token != [kv.shape[4], 1]:
        raise ValueError(f"expected tokens of {kv.shape[4]} numbers one behind the other, found strides {kv.stride()}")
    return kv.data_ptr(), half, head, layer, 0, RAW, kv.shape[3]
