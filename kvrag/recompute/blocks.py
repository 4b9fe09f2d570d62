"""Selection of blocks of tokens that are kept and computed anew, while all others are left out."""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from kvrag.attach import Seen
from kvrag.recompute.selection import Choice, Inquiry, PromptLayout, Selection

__all__ = ["RelevantBlocks"]

_STABLE = 8  # the last eighth of the layers


@dataclass(frozen=True)
class RelevantBlocks(Selection):
    """The first and last tokens of every packet, and those blocks between them that the question looks for.

    Attributes:
        initial, local: first and last tokens of every packet: its anchors.
        block: tokens of a block.
        ratio: of a packet's blocks; None takes as many as exceed its anchors in relevance.
        share: as in `Choice`.
    """

    initial: int
    local: int
    block: int
    ratio: float | None
    share: float

    def inquire(self, layout: PromptLayout) -> "Inquiry":
        """A pass over the text and the last tokens of every packet."""
        return _Relevance(layout, self)

    def choose(self, layout: PromptLayout, inquiry: Inquiry | None) -> Choice:
        """As `Selection.choose`."""
        assert isinstance(inquiry, _Relevance)
        kept = inquiry.anchors.clone()
        for number, (first, last) in enumerate(layout.packets):
            relevance = inquiry.relevance[number]
            begin = first + self.initial
            wanted = 0 if relevance is None else inquiry.count(number)
            if relevance is None or not wanted:
                continue
            for which in relevance.topk(wanted).indices.tolist():
                start = begin + which * self.block
                kept[start : min(start + self.block, last - self.local)] = True
        return Choice(kept, kept=kept, share=self.share)


class _Relevance(Inquiry):
    """Relevance of every block of every packet to a question that knows the other packets too.

    The question's rows see text and anchors only; the last rows of a packet see their own packet only, as when it was
    encoded. In the stable layers, a packet's query is the question's mean query, plus the other packets' mean last
    queries weighted by their likeness to it. A block's relevance is that query times the block's mean key.
    """

    def __init__(self, layout: PromptLayout, selection: RelevantBlocks) -> None:
        self._layout, self._selection = layout, selection
        self.anchors, alone = layout.none(), layout.none()
        for first, last in layout.packets:
            self.anchors[first : min(first + selection.initial, last)] = True
            alone[max(first, last - selection.local) : last] = True
        self.anchors |= alone
        self.anchors, alone = self.anchors.to(layout.device), alone.to(layout.device)
        self.places = (layout.is_text | alone).nonzero()[:, 0]
        self.sees = torch.arange(layout.tokens, device=layout.device) <= self.places[:, None]
        self.sees &= layout.is_text | self.anchors
        for first, last in layout.packets:
            own = (self.places >= first) & (self.places < last)
            self.sees[own] = False
            self.sees[own, first:last] = torch.arange(first, last, device=layout.device) <= self.places[own][:, None]
        self.relevance: list[torch.Tensor | None] = [None] * len(layout.packets)
        self._shares = [0.0] * len(layout.packets)
        self._first_stable = layout.layers - max(1, layout.layers // _STABLE)

    def watch(self, seen: Seen) -> None:
        """As `Inquiry.watch`."""
        if seen.layer < self._first_stable:
            return
        query = seen.query.float()
        asked = query[:, seen.places >= self._layout.question].mean(1)  # [HQ, D]
        own = [query[:, (seen.places >= a) & (seen.places < b)].mean(1) for a, b in self._layout.packets]
        told = torch.stack([q * cosine_similarity(q, asked, dim=-1).abs()[:, None] for q in own])
        others = (told.sum(0) - told) / max(len(own) - 1, 1)
        queries = (asked + others).unflatten(1, (len(seen.keys), -1)).mean(2)  # [P, H, D]
        for number, (first, last) in enumerate(self._layout.packets):
            self._add(number, queries[number], seen.keys[:, first:last].float())

    def count(self, number: int) -> int:
        """How many blocks of a packet to keep."""
        relevance, ratio = self.relevance[number], self._selection.ratio
        assert relevance is not None
        if ratio is not None:
            return math.ceil(ratio * len(relevance))
        return round(self._shares[number] / (self._layout.layers - self._first_stable) * len(relevance))

    def _add(self, number: int, query: torch.Tensor, keys: torch.Tensor) -> None:
        """A layer's `[H, D]` query of a packet with keys `[H, T, D]`."""
        s = self._selection
        begin, end = s.initial, keys.shape[1] - s.local
        if begin >= end:
            return
        scores = (keys * query[:, None]).sum((0, 2))  # of every token
        blocks = torch.stack([part.mean() for part in scores[begin:end].split(s.block)])
        anchor = torch.cat([scores[:begin], scores[end:]]).mean()
        high, low = blocks.max(), blocks.min()
        spread = torch.where(high > low, high - low, 1.0)
        self._shares[number] += float(((high - anchor) / spread).clamp(0, 1).nan_to_num(1.0))
        known = self.relevance[number]
        self.relevance[number] = blocks if known is None else known + blocks
