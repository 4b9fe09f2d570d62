"""Many prompts in one pass through which gradients flow: for training, and for measuring quality at scale.

Serving attaches packets one prompt at a time without copying them. Here rows of many prompts lie behind each other
without padding; every layer's other work sees one long row of tokens, and only attention cuts it into *spans*, blocks
of rows that see nothing but themselves (chunks, or a whole context), and *reads*, rows that see spans and other reads
of their prompt. A prompt may end in several *branches* that do not see each other: questions about one context.
"""

import inspect
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from kvrag.attach.layout import PackedLayout
from kvrag.attach.ranking import PackedRanking

__all__ = ["PackedPass", "PackedStates", "StepPass", "additive_mask"]

_GQA: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""torch before 2.12 groups query heads without being asked."""


class PackedPass:
    """One forward pass over the rows of a layout; takes the place of `AttentionPass`.

    Args:
        layout: on the device of the model.
        keep: keep every layer's keys and values, to generate from (`states`).
        ranking: is shown the layers that it wants.
    """

    def __init__(self, layout: PackedLayout, *, keep: bool = False, ranking: PackedRanking | None = None) -> None:
        self.layers_seen = 0
        self._ranking = ranking
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if keep else None
        self._mask = layout.mask()
        self._added: torch.Tensor | None = None
        self._first = len(layout.span_place)
        self._starts, self._longest = layout.span_starts, layout.spans.shape[1]
        self._spans = _Table(layout.spans, layout.span_place)
        self._reads = _Table(layout.reads, layout.read_place)
        self._keys = _Table(layout.keys, layout.key_place)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attend: `[S, HQ, D]` from queries `[HQ, S, D]`, keys and values `[H, S, D]`."""
        self.layers_seen += 1
        first, (q, k, v) = self._first, (x.transpose(0, 1) for x in (query, key, value))
        of_spans, of_reads = q.split([first, len(q) - first])
        results = []
        if first:
            results.append(self._attend_spans(of_spans, k[:first], v[:first], scaling))
        if len(of_reads):
            keys, values = self._keys.pad(k), self._keys.pad(v)
            if self.kept is not None:
                self.kept[layer] = (keys, values)
            if self._added is None:
                self._added = additive_mask(self._mask, q.shape[1] // k.shape[1], q.dtype)
            reading = self._reads.pad(of_reads)
            if self._ranking is not None and layer in self._ranking.layers:
                self._ranking.watch(reading, keys, self._mask, scaling)
            results.append(self._reads.unpad(_read(reading, keys, values, self._added, scaling)))
        return torch.cat(results)

    def _attend_spans(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        """Causal attention within every span, rows `[n, heads, D]`; without padding where a kernel can."""
        if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
            starts, longest = self._starts, self._longest
            options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), **_GQA}
            attended: Any = varlen_attn(q, k, v, starts, starts, longest, longest, **options)
            return attended
        own, keys, values = (self._spans.pad(x) for x in (q, k, v))
        grouped = own.shape[1] != keys.shape[1]
        out = scaled_dot_product_attention(own, keys, values, is_causal=True, scale=scaling, enable_gqa=grouped)
        return self._spans.unpad(out)

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
            self._added = additive_mask(self._mask, q.shape[1] // k.shape[1], q.dtype)
        out = _read(q, keys[:, :, : self._last], values[:, :, : self._last], self._added, scaling)
        return out.transpose(1, 2).flatten(0, 1)

    def commit(self) -> None:
        """Make the rows part of the states."""
        self._states.length = self._last


class _Table:
    """Rows by number for one kernel call, and back.

    Args:
        rows: `[A, K]` row numbers, each at most once; -1 where there is none.
        place: `[n]` where each row stands in it.
    """

    def __init__(self, rows: torch.Tensor, place: torch.Tensor) -> None:
        self._shape = rows.shape
        self._rows = rows.flatten().clamp(min=0)
        self._gaps = (rows.flatten() < 0)[:, None, None]
        self._place = place

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """`[A, heads, K, D]` from rows `[n, heads, D]`; where there is no row stands one that nobody may look at."""
        padded: Any = _Take.apply(x, self._rows, self._place, None)
        return padded.unflatten(0, self._shape).transpose(1, 2)

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """The rows `[n, heads, D]` of `[A, heads, K, D]`."""
        rows: Any = _Take.apply(x.transpose(1, 2).flatten(0, 1), self._place, self._rows, self._gaps)
        return rows


class _Take(torch.autograd.Function):
    """Rows by number. As `back` knows where each one went, gradients are taken too instead of being added up."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, rows: torch.Tensor, back: torch.Tensor, gaps: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(back, gaps)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        back, gaps = ctx.saved_tensors
        grad = grads[0].index_select(0, back)
        return (grad if gaps is None else grad.masked_fill_(gaps, 0)), None, None, None


def _read(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, added: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Masked attention `[B, HQ, R, D]`; the query heads of a KV head become rows, so that nothing is repeated."""
    heads, group = keys.shape[1], query.shape[1] // keys.shape[1]
    rows = query.unflatten(1, (heads, group)).flatten(2, 3)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=added, scale=scaling)
    return out.unflatten(2, (group, -1)).flatten(1, 2)


def additive_mask(mask: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, `[B, 1, group * R, N]`, from what may be seen `[B, R, N]`.

    Attention kernels would make it of a boolean mask in every layer. Rows lie 16 bytes apart, as fused ones want them.
    """
    batch, rows, keys = mask.shape
    room = torch.zeros(batch, 1, group * rows, -(-keys // 16) * 16, dtype=dtype, device=mask.device)[..., :keys]
    return room.masked_fill_(~mask.repeat(1, group, 1)[:, None], torch.finfo(dtype).min)
