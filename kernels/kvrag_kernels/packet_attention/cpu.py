"""Packet attention through PyTorch's fused CPU attention, which also returns the log-sum-exp.

`reference.py` says what it computes.
"""

from collections.abc import Sequence

import torch

from kvrag_kernels.packet_attention.table import AttentionItem, AttentionTable

__all__ = ["is_supported", "packet_attention_cpu"]

_flash = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def is_supported(query: torch.Tensor) -> bool:
    """Whether PyTorch's fused CPU attention exists here and takes this query."""
    return _flash is not None and query.device.type == "cpu" and query.dtype != torch.float16


def packet_attention_cpu(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    table: AttentionTable,
    scaling: float,
) -> torch.Tensor:
    """Attention of rows over extents of keys that were rotated at other positions.

    The G query heads of a KV head are folded into rows, so one call per item reads its keys once; all back-rotations
    happen in one batch. Shapes as in the reference.
    """
    S, HQ, D = query.shape
    H = keys[0].shape[0]
    q = query.view(S, H, HQ // H, D).transpose(0, 1)  # [H, S, G, D]
    if len(table.items) == 1 and table.items[0].diagonal == 0 and table.items[0].rotation is None:
        item = table.items[0]
        if (item.first_row, item.last_row, item.scale, item.group) == (0, S, 1.0, 0):
            return _causal(q, keys[0], values[0], scaling)[0].transpose(0, 1).reshape(S, HQ, D)  # a plain prefill
    rotated = _rotations(q, table)
    parts: list[tuple[AttentionItem, slice, torch.Tensor, torch.Tensor]] = []
    for item, key, value in zip(table.items, keys, values, strict=True):
        rows = slice(item.first_row, item.last_row)
        x = q[:, rows] if item.rotation is None else rotated[item.rotation][:, rows]
        for out, lse in _partials(x, key, value, item.diagonal, scaling * item.scale):
            parts.append((item, rows, out, lse))
    return _merge(parts, q, table).transpose(0, 1).reshape(S, HQ, D)


def _rotations(q: torch.Tensor, table: AttentionTable) -> torch.Tensor | Sequence[torch.Tensor]:
    """The queries [H, S, G, D] rotated back by every row of the table: [R, H, S, G, D].

    `rotate_back` of the reference, written with few passes over memory.
    """
    if not len(table.cos):
        return ()
    x = q.to(torch.promote_types(q.dtype, torch.float32))
    cos, sin = (angles[:, None, None, None].to(x.dtype) for angles in (table.cos, table.sin))
    half = cos.shape[-1]
    lo, hi = x[..., :half], x[..., half : 2 * half]
    rotated = torch.empty((len(cos), *q.shape), dtype=q.dtype)
    turned = (lo * cos).addcmul_(hi, sin)
    rotated[..., :half] = turned
    torch.mul(hi, cos, out=turned).addcmul_(lo, sin, value=-1)
    rotated[..., half : 2 * half] = turned
    rotated[..., 2 * half :] = q[..., 2 * half :]
    return rotated


def _partials(q: torch.Tensor, key: torch.Tensor, value: torch.Tensor, diagonal: int | None, scaling: float):
    """Yield output [H, N, G, D] and log-sum-exp [H, N, G] over the visible tokens, in one or two pieces."""
    T = key.shape[1]
    if diagonal is None or (q.shape[1] == 1 and diagonal >= T - 1):
        yield _whole(q, key, value, scaling)
        return
    full = min(diagonal, T)  # tokens that every row sees
    if full > 0:
        yield _whole(q, key[:, :full], value[:, :full], scaling)
    if full < T:
        yield _causal(q, key[:, full:], value[:, full:], scaling)


def _whole(q: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float):
    """Every row sees every token: output [H, N, G, D] and log-sum-exp [H, N, G]."""
    H, N, G, D = q.shape
    folded = q.reshape(1, H, N * G, D)
    out, lse = _flash(folded, key.unsqueeze(0), value.unsqueeze(0), 0.0, False, scale=scaling)  # pyright: ignore[reportOptionalCall]
    return out.view(H, N, G, D), lse.view(H, N, G)


def _causal(q: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float):
    """Row i sees token t iff t <= i: output [H, N, G, D] and log-sum-exp [H, N, G].

    KV heads become the batch and query heads share their keys by a zero stride, since folding would bend the diagonal.
    """
    G = q.shape[2]
    shared = (key.shape[0], G, *key.shape[1:])
    heads = q.transpose(1, 2)  # [H, G, N, D]
    out, lse = _flash(heads, key[:, None].expand(shared), value[:, None].expand(shared), 0.0, True, scale=scaling)  # pyright: ignore[reportOptionalCall]
    return out.transpose(1, 2), lse.transpose(1, 2)


def _merge(
    parts: list[tuple[AttentionItem, slice, torch.Tensor, torch.Tensor]], q: torch.Tensor, table: AttentionTable
) -> torch.Tensor:
    """Merge partial results by log-sum-exp, within groups and then across them: [H, S, G, D]."""
    groups = [item.group for item, *_ in parts]
    if all(rows == slice(0, q.shape[1]) for _, rows, *_ in parts):  # always so while decoding a single request
        share = _shares(torch.stack([lse for *_, lse in parts]), groups, table)
        return (share[..., None] * torch.stack([out for _, _, out, _ in parts])).sum(0).to(q.dtype)
    lse = torch.full((len(parts), *q.shape[:-1]), -torch.inf, dtype=parts[0][3].dtype)  # [N, H, S, G]
    for number, (_, rows, _, part) in enumerate(parts):
        lse[number, :, rows] = part
    share = _shares(lse, groups, table)
    merged = torch.zeros(q.shape, dtype=lse.dtype)
    for number, (_, rows, out, _) in enumerate(parts):
        merged[:, rows].addcmul_(share[number, :, rows, :, None], out)
    return merged.to(q.dtype)


def _shares(lse: torch.Tensor, groups: list[int], table: AttentionTable) -> torch.Tensor:
    """The weight of every partial result, summing to 1 over the first dimension: [N, H, S, G]."""
    if len(table.group_scale) == 1:  # one group: its scale and bias change nothing
        return torch.softmax(lse, dim=0)
    of_part = torch.tensor(groups)
    share = torch.zeros_like(lse)
    totals = []
    for group in range(len(table.group_scale)):
        mine = of_part == group
        total = lse[mine].logsumexp(0)
        share[mine] = (lse[mine] - torch.where(total.isneginf(), 0.0, total)).exp()
        totals.append(total * table.group_scale[group] + table.group_bias[group])
    across = torch.softmax(torch.stack(totals), dim=0)
    return share * across[of_part]
