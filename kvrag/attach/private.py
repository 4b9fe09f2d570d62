"""A pass over scattered rows of one lane, among keys and values that it may overwrite."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvrag.attach.lane import Lane
from kvrag.attach.packed import additive_mask

__all__ = ["PrivatePass", "Seen", "Watcher"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a watcher is shown of one layer: `S` rows of the pass in a lane of `N`.

    Attributes:
        layer: its number.
        places: `[S]` rows of the lane that the pass computes, ascending.
        query: `[HQ, S, D]`.
        key, value: `[H, S, D]` of the rows, computed now.
        old_key, old_value: `[H, S, D]` of the same rows, as they were in the lane.
        keys: `[H, N, D]` of the lane, those computed now among them.
        scaling: of the scores.
    """

    layer: int
    places: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    old_key: torch.Tensor
    old_value: torch.Tensor
    keys: torch.Tensor
    scaling: float


Watcher = Callable[[Seen], torch.Tensor | None]
"""Sees every layer, and says which of the pass's rows the next layer computes, `[n]` ascending; None is all."""


class PrivatePass:
    """One forward pass over some rows of one lane; takes the place of `AttentionPass`.

    Rows stand in the lane in the order of the prompt, computed or not, so a row at place p sees places 0 to p. Every
    layer first writes the rows' new keys and values at their places, then attends over the whole lane.

    Args:
        lane: without rows of its own and extents; its block holds keys and values of what the pass does not compute.
        places: `[S]` rows of the lane to compute, ascending.
        tokens: `N` rows that the lane has behind the pass.
        watch: is shown every layer.
        sees: `[S, N]` which places a row sees, if not all up to its own.
        share: of what is computed now in what is written; the rest is what was there.

    Attributes:
        computed: rows computed, summed over the layers.
    """

    def __init__(
        self,
        lane: Lane,
        places: torch.Tensor,
        tokens: int,
        *,
        watch: Watcher | None = None,
        sees: torch.Tensor | None = None,
        share: float = 1.0,
    ) -> None:
        self.layers_seen = 0
        self.computed = 0
        lane.reserve(tokens - lane.length)
        self._lane, self._tokens = lane, tokens
        self._places, self._sees = places, sees
        self._watch, self._share = watch, share
        self._among: torch.Tensor | None = None
        self._left: torch.Tensor | None = None
        self._added: torch.Tensor | None = None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Write the rows' keys and values `[H, S, D]` at their places and attend: `[S, HQ, D]` from `[HQ, S, D]`."""
        self.layers_seen += 1
        self.computed += key.shape[1]
        keys, values = self._lane.own(0, self._tokens)[layer].unbind(0)
        old = None
        if self._watch is not None or self._share != 1.0:
            old = keys[:, self._places], values[:, self._places]
        if old is not None and self._share != 1.0:
            key, value = (torch.lerp(before, now, self._share) for before, now in zip(old, (key, value), strict=True))
        keys.index_copy_(1, self._places, key)
        values.index_copy_(1, self._places, value)
        if self._watch is not None and old is not None:
            self._left = self._watch(Seen(layer, self._places, query, key, value, *old, keys, scaling))
        return self._attended(query, keys, values, scaling)

    def narrow(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Go on with the rows that the watcher chose last, before a layer begins.

        Returns:
            Their numbers among the rows of the layer before, if any were left out there, and among those of the first
            layer, if any were left out since.
        """
        left, self._left = self._left, None
        if left is not None:
            self._places = self._places[left]
            self._sees = None if self._sees is None else self._sees[left]
            self._added = None
            self._among = left if self._among is None else self._among[left]
        return left, self._among

    def commit(self) -> None:
        """Make all rows part of the lane."""
        self._lane.advance(self._tokens - self._lane.length)

    def _attended(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
        """Masked attention `[S, HQ, D]`; the query heads of a KV head read the same keys, without copies of them."""
        if self._sees is None and len(self._places) == self._tokens:
            q, k, v = (x[None] for x in (query, keys, values))
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
            return out[0].transpose(0, 1)
        if self._added is None:
            sees = self._sees
            if sees is None:
                sees = torch.arange(self._tokens, device=query.device) <= self._places[:, None]
            self._added = additive_mask(sees[None], 1, query.dtype)
        q = query.unflatten(0, (len(keys), -1))
        k, v = (x[:, None].expand(-1, q.shape[1], -1, -1) for x in (keys, values))
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._added, scale=scaling)
        return out.flatten(0, 1).transpose(0, 1)
