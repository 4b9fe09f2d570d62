"""Re-rotation on a GPU: all packets and all layers in one launch, every number read once and written once."""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from kvrag_kernels.packet_attention.readers import ALIGNED

__all__ = ["move_blocks", "rerotate_triton"]

_BLOCK = 64


@triton.jit
def move_blocks(
    anchor,
    target,
    cos,
    sin,
    blocks,
    target_layer,
    target_half,
    target_head,
    heads,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    about = blocks + tl.program_id(0) * 7
    source = tl.load(about)
    layer = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    half = tl.load(about + 2)
    source = tl.multiple_of(source + layer * tl.load(about + 1) + head * tl.load(about + 3), 16)
    half = tl.multiple_of(half, 16)
    to = tl.multiple_of(layer * target_layer + head * target_head + tl.load(about + 4) * D, 16)
    turn = tl.load(about + 6)
    i = tl.arange(0, PADDED // 2)
    turns = i < HALF
    if 2 * HALF == D:
        lo = i
        hi = i + HALF
    else:
        lo = tl.where(turns, i, i + HALF)
        hi = tl.where(turns, i + HALF, i + D // 2)
    token = tl.arange(0, BLOCK)[:, None]
    there = (token < tl.load(about + 5)) & (i < D // 2)[None, :]
    x = tl.load(anchor + source + token * D + lo[None, :], mask=there)
    y = tl.load(anchor + source + token * D + hi[None, :], mask=there)
    c = tl.load(cos + turn * HALF + i, mask=turns, other=1.0)[None, :]
    s = tl.load(sin + turn * HALF + i, mask=turns, other=0.0)[None, :]
    wide_x = x.to(tl.float32)
    wide_y = y.to(tl.float32)
    tl.store(target + to + token * D + lo[None, :], (wide_x * c - wide_y * s).to(target.dtype.element_ty), mask=there)
    tl.store(target + to + token * D + hi[None, :], (wide_y * c + wide_x * s).to(target.dtype.element_ty), mask=there)
    x = tl.load(anchor + source + half + token * D + lo[None, :], mask=there)
    y = tl.load(anchor + source + half + token * D + hi[None, :], mask=there)
    tl.store(target + to + target_half + token * D + lo[None, :], x, mask=there)
    tl.store(target + to + target_half + token * D + hi[None, :], y, mask=there)


def rerotate_triton(
    packets: Sequence[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    target: torch.Tensor,
    starts: Sequence[int],
) -> None:
    """As `rerotate`."""
    L, _, H, _, D = target.shape
    rows: list[np.ndarray] = []
    for number, (packet, start) in enumerate(zip(packets, starts, strict=True)):
        if packet.stride(3) != D:
            raise ValueError(f"expected tokens of {D} numbers one behind the other, found {packet.stride()}")
        begin = (packet.data_ptr() - target.data_ptr()) // target.element_size()
        if any(number % ALIGNED for number in (begin, *packet.stride()[:4], *target.stride()[:4])):
            raise ValueError(f"expected blocks that begin at multiples of {ALIGNED} numbers, found one at {begin}")
        token = np.arange(0, packet.shape[3], _BLOCK)
        row = np.empty((len(token), 7), np.int64)
        row[:, 0] = begin + token * D
        row[:, 1:4] = packet.stride()[:3]
        row[:, 4] = start + token
        row[:, 5] = np.minimum(_BLOCK, packet.shape[3] - token)
        row[:, 6] = number
        rows.append(row)
    blocks = torch.from_numpy(np.concatenate(rows)).to(target.device)
    angles = [t.to(target.device, torch.float32).contiguous() for t in (cos, sin)]
    move_blocks[(len(blocks), L * H)](
        target, target, *angles, blocks, *target.stride()[:3], H,
        D=D, PADDED=1 << (D - 1).bit_length(), HALF=cos.shape[1], BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
