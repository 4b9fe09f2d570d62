"""Checksums of parts of a packet that are read without the rest: its token segments."""

import torch
from xxhash import xxh3_128

__all__ = ["SEGMENT", "segment_checksum", "segment_checksums"]

SEGMENT = 128
"""Tokens that have a checksum of their own."""


def segment_checksums(kv: torch.Tensor) -> tuple[str, ...]:
    """Checksums of the segments of `[L, 2, H, T, D]` in host memory; none for a packet of a single segment."""
    tokens = kv.shape[3]
    if tokens <= SEGMENT:
        return ()
    return tuple(segment_checksum(kv, first, min(first + SEGMENT, tokens)) for first in range(0, tokens, SEGMENT))


def segment_checksum(kv: torch.Tensor, first: int, last: int) -> str:
    """xxh3-128 over tokens `first` to `last` of every head, layer by layer, keys before values, hexadecimal."""
    digest = xxh3_128()
    flat = kv.view(-1, *kv.shape[3:]).view(torch.uint8).numpy()
    for head in flat:
        digest.update(head[first:last].data)
    return digest.hexdigest()
