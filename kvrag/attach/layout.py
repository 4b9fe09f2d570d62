"""Which row of many prompts stands where in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

__all__ = ["NO_SPAN", "PackedLayout", "pack_layout"]

NO_SPAN = -1
"""Span number of a row that reads."""


@dataclass(frozen=True)
class PackedLayout:
    """Which row stands where. `C` spans of at most `T` rows, `B` prompts with at most `R` reads and `N` keys, `S` rows.

    The rows of spans come first.

    Attributes:
        spans: `[C, T]` row numbers, -1 behind a span's own.
        span_starts: `[C + 1]` int32, the first row of every span, and the end of the last.
        reads: `[B, R]` numbers among the rows that read, likewise.
        keys: `[B, N]` row numbers of all that a prompt's reads may see, likewise.
        span_place, read_place, key_place: where each row stands in those three, read row by row.
        read_order, key_order: `[B, R]`, `[B, N]` places in the prompt; -1 fills up the reads.
        read_branch, key_branch: `[B, R]`, `[B, N]` branches, 0 for what all branches see; -1 fills up the keys.
    """

    spans: torch.Tensor
    span_starts: torch.Tensor
    reads: torch.Tensor
    keys: torch.Tensor
    span_place: torch.Tensor
    read_place: torch.Tensor
    key_place: torch.Tensor
    read_order: torch.Tensor
    key_order: torch.Tensor
    read_branch: torch.Tensor
    key_branch: torch.Tensor

    def to(self, device: torch.device) -> "PackedLayout":
        """The layout on a device."""
        return PackedLayout(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def mask(self) -> torch.Tensor:
        """Which key a read sees: `[B, R, N]`. A filled-up read sees the first key, so that its softmax is finite."""
        allowed = self.key_order[:, None] <= self.read_order[..., None]
        branch = self.key_branch[:, None]
        allowed &= (branch == 0) | (branch == self.read_branch[..., None])
        allowed[..., 0] |= self.read_order < 0
        return allowed


def pack_layout(
    prompts: Sequence[int],
    spans: Sequence[int],
    orders: Sequence[int],
    branches: Sequence[int],
    *,
    least: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0),
) -> PackedLayout:
    """The layout of `S` rows.

    Args:
        prompts: `[S]` number of each row's prompt, from 0.
        spans: `[S]` number of each row's span, from 0 in the order of the rows, or `NO_SPAN` behind all of them.
        orders: `[S]` place in its prompt: a read sees what has no greater one.
        branches: `[S]` 0, or the branch that the row belongs to; rows of spans have 0. No read sees a row of -1.
        least: C, T, B, R and N are at least this.
    """
    most_spans, longest, most_prompts, most_reads, most_keys = least
    prompt, span, order, branch = (torch.tensor(list(x), dtype=torch.long) for x in (prompts, spans, orders, branches))
    first = int((span != NO_SPAN).sum())
    assert (span[first:] == NO_SPAN).all(), "rows of spans come first"
    count = max(int(prompt.max()) + 1, most_prompts)
    of_spans, span_place = _table(span[:first], most_spans, longest)
    of_reads, read_place = _table(prompt[first:], count, most_reads)
    of_keys, key_place = _table(prompt, count, most_keys)
    reads, keys = of_reads.clamp(min=0) + first, of_keys.clamp(min=0)
    return PackedLayout(
        spans=of_spans,
        span_starts=torch.nn.functional.pad((of_spans >= 0).sum(1).cumsum(0), (1, 0)).to(torch.int32),
        reads=of_reads,
        keys=of_keys,
        span_place=span_place,
        read_place=read_place,
        key_place=key_place,
        read_order=order[reads].masked_fill(of_reads < 0, -1),
        key_order=order[keys],
        read_branch=branch[reads],
        key_branch=branch[keys].masked_fill(of_keys < 0, -1),
    )


def _table(group: torch.Tensor, groups: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `[groups, width]` of every group in their order, -1 where there are no more; and each row's flat place.

    Both sizes are the least ones; the table grows with what is in it.
    """
    sizes = torch.bincount(group, minlength=groups)
    width = max(width, int(sizes.max())) if len(sizes) else width
    by_group = torch.argsort(group, stable=True)
    first = torch.cumsum(sizes, 0) - sizes
    within = torch.empty_like(group)
    within[by_group] = torch.arange(len(group)) - first[group[by_group]]
    place = group * width + within
    table = torch.full((len(sizes) * width,), -1)
    table[place] = torch.arange(len(group))
    return table.unflatten(0, (len(sizes), width)), place
