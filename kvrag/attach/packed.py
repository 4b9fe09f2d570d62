"""Many prompts in one pass through which gradients flow: for training, and for measuring quality at scale.

Serving attaches packets one prompt at a time without copying them. Here rows of many prompts lie behind each other
without padding; every layer's other work sees one long row of tokens, and only attention cuts it into *spans*, blocks
of rows that see nothing but themselves (chunks, or a whole context), and *reads*, rows that see spans and other reads
of their prompt. A prompt may end in several *branches* that do not see each other: questions about one context.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvrag.attach.layout import PackedLayout

__all__ = ["PackedPass", "PackedStates", "StepPass"]


class PackedPass:
    """One forward pass over the rows of a layout; takes the place of `AttentionPass`.

    Args:
        layout: on the device of the model.
        keep: keep every layer's keys and values, to generate from (`states`).
    """

    def __init__(self, layout: PackedLayout, *, keep: bool = False) -> None:
        self.layers_seen = 0
        self.layout = layout
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if keep else None
        self._mask = layout.mask()
        self._added: torch.Tensor | None = None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attend: `[S, HQ, D]` from queries `[HQ, S, D]`, keys and values `[H, S, D]`."""
        self.layers_seen += 1
        at, (q, k, v) = self.layout, (x.transpose(0, 1) for x in (query, key, value))
        first, results = len(at.span_place), []
        if first:
            own, keys, values = (_pad(x[:first], at.spans, at.span_place) for x in (q, k, v))
            grouped = own.shape[1] != keys.shape[1]
            out = scaled_dot_product_attention(own, keys, values, is_causal=True, scale=scaling, enable_gqa=grouped)
            results.append(_unpad(out, at.spans, at.span_place))
        if first < len(q):
            keys, values = (_pad(x, at.keys, at.key_place) for x in (k, v))
            if self.kept is not None:
                self.kept[layer] = (keys, values)
            if self._added is None:  # once a pass: attention kernels would turn a boolean mask into this in every layer
                self._added = _additive(self._mask, q.shape[1] // k.shape[1], q.dtype)
            out = _read(_pad(q[first:], at.reads, at.read_place), keys, values, self._added, scaling)
            results.append(_unpad(out, at.reads, at.read_place))
        return torch.cat(results)

    def states(self, rows: torch.Tensor, steps: int) -> "PackedStates":
        """What the pass kept, with room to go on.

        Args:
            rows: `[B, M]` of each prompt, the last row of every branch, as a number among the prompt's reads.
            steps: tokens each branch may gain.
        """
        assert self.kept is not None, "made to keep nothing"
        mask = self._mask.gather(1, rows[..., None].expand(-1, -1, self._mask.shape[2]))
        return PackedStates(self.kept, mask, steps)


class PackedStates:
    """Keys and values of `B` prompts with `M` branches each, growing by a row a branch and step.

    Args:
        kept: of each layer `[B, H, N, D]` keys and values.
        mask: `[B, M, N]` which of them a branch sees.
        steps: to make room for.
    """

    def __init__(self, kept: dict[int, tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor, steps: int) -> None:
        self.branches = mask.shape[1]
        self.length = mask.shape[2]
        room = steps * self.branches
        own = torch.eye(self.branches, dtype=torch.bool, device=mask.device).repeat(1, steps)
        self.mask = torch.cat([mask, own[None].expand(len(mask), -1, -1)], dim=2)
        self.layers = {
            layer: tuple(torch.nn.functional.pad(x, (0, 0, 0, room)) for x in both) for layer, both in kept.items()
        }


class StepPass:
    """One more row for every branch; rows are numbered prompt by prompt.

    Args:
        states: which gain the rows.
    """

    def __init__(self, states: PackedStates) -> None:
        self.layers_seen = 0
        self._states = states
        self._last = states.length + states.branches
        self._mask = states.mask[:, :, : self._last]
        self._added: torch.Tensor | None = None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attend: `[B * M, HQ, D]` from queries `[HQ, B * M, D]`, keys and values `[H, B * M, D]`."""
        self.layers_seen += 1
        branches, first = self._states.branches, self._states.length
        q, k, v = (x.unflatten(1, (-1, branches)).transpose(0, 1) for x in (query, key, value))
        keys, values = self._states.layers[layer]
        keys[:, :, first : self._last] = k
        values[:, :, first : self._last] = v
        if self._added is None:
            self._added = _additive(self._mask, q.shape[1] // k.shape[1], q.dtype)
        out = _read(q, keys[:, :, : self._last], values[:, :, : self._last], self._added, scaling)
        return out.transpose(1, 2).flatten(0, 1)

    def commit(self) -> None:
        """Make the rows part of the states."""
        self._states.length = self._last


class _Gather(torch.autograd.Function):
    """Rows by number, 0 where there is none. Every row is taken at most once, so that its gradient is gathered too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, back)
        return _gather(x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows, back = ctx.saved_tensors
        return _gather(grads[0], back), None, None


def _gather(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`[n, ...]` rows of `x` by number `[n]`; what is negative gives zeros."""
    return x.index_select(0, rows.clamp(min=0)).masked_fill_((rows < 0).view(-1, *[1] * (x.ndim - 1)), 0)


def _pad(x: torch.Tensor, table: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """`[A, heads, K, D]` from rows `[n, heads, D]`, their table `[A, K]` and their places in it `[n]`."""
    padded: Any = _Gather.apply(x, table.flatten(), place)
    return padded.unflatten(0, table.shape).transpose(1, 2)


def _unpad(x: torch.Tensor, table: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The rows `[n, heads, D]` of `[A, heads, K, D]`."""
    rows: Any = _Gather.apply(x.transpose(1, 2).flatten(0, 1), place, table.flatten())
    return rows


def _read(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, added: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Masked attention `[B, HQ, R, D]`; the query heads of a KV head become rows, so that nothing is repeated."""
    heads, group = keys.shape[1], query.shape[1] // keys.shape[1]
    rows = query.unflatten(1, (heads, group)).flatten(2, 3)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=added, scale=scaling)
    return out.unflatten(2, (group, -1)).flatten(1, 2)


def _additive(mask: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, `[B, 1, group * R, N]`, from what may be seen `[B, R, N]`.

    Rows lie 16 bytes apart, as the fused kernels want them.
    """
    batch, rows, keys = mask.shape
    room = torch.zeros(batch, 1, group * rows, -(-keys // 16) * 16, dtype=dtype, device=mask.device)[..., :keys]
    return room.masked_fill_(~mask.repeat(1, group, 1)[:, None], torch.finfo(dtype).min)
