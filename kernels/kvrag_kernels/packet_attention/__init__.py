"""Attention of a few rows over many immutable packets, each at its own place in the prompt."""

from collections.abc import Sequence

import torch

from kvrag_kernels.packet_attention.cpu import is_supported, packet_attention_cpu
from kvrag_kernels.packet_attention.reference import packet_attention_reference, rotate_back
from kvrag_kernels.packet_attention.table import AttentionItem, AttentionTable

__all__ = [
    "AttentionItem",
    "AttentionTable",
    "packet_attention",
    "packet_attention_cpu",
    "packet_attention_reference",
    "rotate_back",
]


def packet_attention(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    table: AttentionTable,
    scaling: float,
) -> torch.Tensor:
    """Attention of rows over extents of keys that were rotated at other positions.

    Shapes:
        query:   [S, HQ, D]  rotated at the rows' own positions
        keys:    one [H, T, D] per item of the table
        values:  one [H, T, D] per item
        returns: [S, HQ, D]  in the dtype of query

    Raises:
        ValueError: shapes that do not fit together.
    """
    S, HQ, D = query.shape
    if not len(table.items) == len(keys) == len(values) > 0:
        raise ValueError(f"expected one [H, T, D] per item ({len(table.items)}), found {len(keys)} and {len(values)}")
    for item, key, value in zip(table.items, keys, values, strict=True):
        if key.shape != value.shape or key.shape[2] != D or HQ % key.shape[0]:
            raise ValueError(f"keys {list(key.shape)} and values {list(value.shape)} do not fit query {[S, HQ, D]}")
        if not 0 <= item.first_row < item.last_row <= S:
            raise ValueError(f"rows {item.first_row}..{item.last_row} of an item lie outside the pass of {S} rows")
    run = packet_attention_cpu if is_supported(query) else packet_attention_reference
    return run(query, keys, values, table, scaling)
