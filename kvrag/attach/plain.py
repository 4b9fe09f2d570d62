"""A pass over lanes that are empty, such as chunks to encode."""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvrag.attach.attention import LanePass
from kvrag.attach.lane import Lane

__all__ = ["PlainPass"]


class PlainPass(LanePass):
    """One forward pass over lanes that are empty: what PyTorch's own attention does best.

    Args:
        lanes: the lanes, in the order of their rows in the pass; without rows and extents.
        rows: number of rows each lane computes now.
    """

    @staticmethod
    def takes(lanes: Sequence[Lane]) -> bool:
        """Whether all lanes are empty."""
        return not any(lane.length or lane.extents for lane in lanes)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Write the rows' keys and values `[H, S, D]` into their lanes and attend: `[S, HQ, D]` from `[HQ, S, D]`."""
        self.layers_seen += 1
        found: list[torch.Tensor] = []
        first = 0
        for lane, count in self._lanes:
            rows = slice(first, first + count)
            lane.write(layer, key[:, rows], value[:, rows])
            q, k, v = (t[None, :, rows] for t in (query, key, value))
            found.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)[0])
            first += count
        return (torch.cat(found, 1) if len(found) > 1 else found[0]).transpose(0, 1)
