"""The specification of packet attention, in plain PyTorch: any device, any dtype, reads like the formula."""

from collections.abc import Sequence

import torch

from kvrag_kernels.packet_attention.encoded import Scaled
from kvrag_kernels.packet_attention.table import AttentionItem, AttentionTable

__all__ = ["packet_attention_reference", "rotate_back"]


def rotate_back(query: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate queries back by the angles whose cosines and sines are given, in the half-split RoPE layout.

    A key rotated at local position j and a query rotated at position p meet in a packet placed at s as
    `(R(p) q) . (R(s + j) k) = (R(-s) R(p) q) . (R(j) k)`; this is the `R(-s)`.

    Shapes:
        query:    [..., D]
        cos, sin: [..., E / 2], broadcast against query; the channels from E on are left alone
        returns:  [..., D] in the promoted dtype
    """
    half = cos.shape[-1]
    lo, hi, rest = query[..., :half], query[..., half : 2 * half], query[..., 2 * half :]
    lo, hi = lo * cos + hi * sin, hi * cos - lo * sin
    return torch.cat([lo, hi, rest.expand(*lo.shape[:-1], -1).to(lo.dtype)], dim=-1)


def packet_attention_reference(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor | Scaled],
    values: Sequence[torch.Tensor | Scaled],
    table: AttentionTable,
    scaling: float,
) -> torch.Tensor:
    """Attention of rows over extents of keys that were rotated at other positions.

    Computes in float32, or in float64 for float64 inputs.

    Shapes:
        query:   [S, HQ, D]  rotated at the rows' own positions
        keys:    one [H, T, D] per item of the table, of the dtype of query or with scales of their own
        values:  one [H, T, D] per item
        returns: [S, HQ, D]  in the dtype of query
    """
    S, HQ, D = query.shape
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    groups = len(table.group_scale)
    H = keys[0].shape[0]
    q = query.to(compute).view(S, H, HQ // H, D).transpose(0, 1)  # [H, S, G, D]
    lse = q.new_full((groups, *q.shape[:-1]), -torch.inf)  # [N, H, S, G]
    out = q.new_zeros((groups, *q.shape))  # [N, H, S, G, D]
    for item, key, value in zip(table.items, keys, values, strict=True):
        rows = slice(item.first_row, item.last_row)
        x, weight = _one_item(q[:, rows], key.to(compute), value.to(compute), item, table, scaling)
        merged = torch.logaddexp(lse[item.group, :, rows], weight)
        old = (lse[item.group, :, rows] - merged).exp()
        new = (weight - merged).exp()
        out[item.group, :, rows] = out[item.group, :, rows] * old[..., None] + x * new[..., None]
        lse[item.group, :, rows] = merged
    scale = q.new_tensor(table.group_scale)[:, None, None, None]
    bias = q.new_tensor(table.group_bias)[:, None, None, None]
    share = torch.softmax(torch.where(lse.isneginf(), lse, lse * scale + bias), dim=0)
    return (share[..., None] * out).sum(0).transpose(0, 1).reshape(S, HQ, D).to(query.dtype)


def _one_item(
    q: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    item: AttentionItem,
    table: AttentionTable,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [H, N, G, D] and log-sum-exp [H, N, G] of the item's N rows over its own keys."""
    if item.rotation is not None:
        q = rotate_back(q, table.cos[item.rotation].to(q.dtype), table.sin[item.rotation].to(q.dtype))
    scores = torch.einsum("hngd,htd->hngt", q, key) * (scaling * item.scale)
    if item.diagonal is not None:
        row = torch.arange(q.shape[1], device=q.device)[:, None, None]
        token = torch.arange(key.shape[1], device=q.device)
        scores = scores.masked_fill(token > row + item.diagonal, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - torch.where(lse.isneginf(), 0.0, lse)[..., None]).exp()
    return torch.einsum("hngt,htd->hngd", weights, value), lse
