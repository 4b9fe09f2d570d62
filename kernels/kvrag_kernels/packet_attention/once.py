"""A single pass by the kernels for GPUs, without buffers to keep."""

from collections.abc import Sequence
from typing import Any

import torch

from kvrag_kernels.packet_attention.device import DeviceWork
from kvrag_kernels.packet_attention.encoded import Scaled
from kvrag_kernels.packet_attention.readers import forms_of, readers_of
from kvrag_kernels.packet_attention.table import AttentionTable
from kvrag_kernels.packet_attention.work import CapacityError

__all__ = ["packet_attention_triton"]


def packet_attention_triton(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor | Scaled],
    values: Sequence[torch.Tensor | Scaled],
    table: AttentionTable,
    scaling: float,
    **options: Any,
) -> torch.Tensor:
    """Attention of rows over extents of keys that were rotated at other positions, in one go.

    Shapes as in the reference; `options` are those of `DeviceWork`.
    """
    S, HQ, D = query.shape
    H = keys[0].shape[0]
    readers = readers_of(query, keys, values, table)
    half = table.cos.shape[1]
    options = {"forms": forms_of(readers[0])} | options
    try:
        work = DeviceWork(query, S, H, HQ // H, D, half, **options)
        work.fill(*readers, table)
    except CapacityError as error:
        work = DeviceWork(query, S, H, HQ // H, D, half, capacity=error.needed, **options)
        work.fill(*readers, table)
    return work.attend(query, 0, scaling)
