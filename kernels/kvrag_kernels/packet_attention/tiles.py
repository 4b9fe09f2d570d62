"""How a program works on a unit of packet attention."""

from dataclasses import dataclass, replace

import torch

__all__ = ["TileShape", "count_multiprocessors", "is_hopper", "padded", "tile_shape"]


@dataclass(frozen=True, slots=True)
class TileShape:
    """How a program works on a unit.

    Attributes:
        block_rows: rows of a tile, each a row of the pass for one query head.
        block_tokens: tokens of a tile.
        warps: of a program.
        stages: tiles in flight.
        programs: that a multiprocessor has registers for at a time.
    """

    block_rows: int
    block_tokens: int
    warps: int
    stages: int
    programs: int


def tile_shape(
    rows: int, group: int, head_dim: int, *, hopper: bool, itemsize: int = 2, encoded: bool = False
) -> TileShape:
    """The tile for passes of `rows` rows: as large as registers allow without spilling, which offline tests check.

    Args:
        rows: S of the pass.
        group: query heads to a KV head.
        head_dim: D.
        hopper: compute capability 9.0 or later.
        itemsize: bytes of a key's number.
        encoded: whether extents of bytes are among those read, whose numbers pass through registers.
    """
    if encoded:
        plain = tile_shape(rows, group, head_dim, hopper=hopper, itemsize=itemsize)
        if plain.block_rows <= 16:
            return plain
        fewer = replace(plain, block_tokens=min(32, plain.block_tokens))
        return fewer if hopper or plain.block_rows <= 32 else replace(fewer, block_rows=32, warps=4, programs=2)
    if itemsize > 2:
        half = tile_shape(rows, group, head_dim, hopper=hopper)
        return replace(half, block_tokens=max(16, half.block_tokens // 2))
    wanted = rows * group
    wide = head_dim > 128
    even = head_dim in (64, 128) and group & (group - 1) == 0
    tokens = 32 if wide or (head_dim > 64 and not hopper) else 64
    if wanted <= 16:
        if wide or head_dim <= 64 and not hopper:
            return TileShape(16, 32, 4, 3 if wide else 4, 2 if wide else 4)
        return TileShape(16, 128 if hopper else 64, 8, 3, 1)
    if wanted <= 32 or wide:
        return TileShape(32, tokens, 8 if wide else 4, 3, 1 if wide else 2)
    if not (hopper and even):
        return TileShape(64, tokens, 8, 3, 1)
    return TileShape(64, tokens, 4, 3, 2) if wanted <= 128 else TileShape(128, tokens, 8, 3, 1)


def padded(head_dim: int) -> int:
    """D as kernels have it: the next power of two."""
    return 1 << (head_dim - 1).bit_length()


def count_multiprocessors(device: torch.device) -> int:
    """How many the device has; 4 of a CPU, whose interpreter has none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def is_hopper(device: torch.device) -> bool:
    """Whether the device has compute capability 9.0 or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
