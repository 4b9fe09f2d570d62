"""How much attention the end of a prompt pays to each of its packets, in the layers in which models look things up."""

import torch
from kvrag_kernels.packet_attention.reference import rotate_back

from kvrag.attach.lane import Extent, Lane
from kvrag.attach.layout import PackedLayout
from kvrag.rope import Rope

__all__ = ["PackedRanking", "PacketRanking"]

_MOST = 1 << 26  # scores in memory at once


class PacketRanking:
    """Of one prompt that is served.

    Args:
        packets: its extents that are to be ranked, among those of its lane.
        rows: the last so many rows of its pass ask.

    Attributes:
        shares: of each packet, once the pass is done: the attention paid to it, mean over layers, heads and rows; what
            text and other states get is left to 1.
    """

    def __init__(self, packets: list[Extent], rows: int) -> None:
        self.shares: list[float] = []
        self.rows = rows
        self._packets = packets

    def take(self, queries: torch.Tensor, lane: Lane, layers: range, rope: Rope, scaling: float) -> None:
        """Rank by the queries that a pass has left.

        Args:
            queries: `[l, HQ, rows, D]` of the asking rows, the lane's last ones, in the `layers`.
            lane: with these rows.
            layers: l of the model's.
            rope: of the model.
            scaling: of the scores.
        """
        extents, device, count = lane.extents, queries.device, queries.shape[2]
        attached = [extent.keys_in(layers) for extent in extents]  # [l, H, T, D] each
        own = lane.own(0, lane.length)[layers.start : layers.stop, 0]
        lengths = torch.tensor([keys.shape[2] for keys in attached], device=device)
        total = sum(keys.shape[2] for keys in attached)
        angles = (x.to(device) for x in rope.angles([extent.turn for extent in extents]))
        cos, sin = (x.repeat_interleave(lengths, 0, output_size=total) for x in angles)
        later = torch.ones(count, count, dtype=torch.bool, device=device).triu(1)
        paid: list[torch.Tensor] = []
        at_once = max(1, _MOST // (queries.shape[1] * count * (total + lane.length)))  # layers
        for first in range(0, len(layers), at_once):
            some = slice(first, first + at_once)
            keys = torch.cat([of_extent[some] for of_extent in attached], 2)
            turned = rotate_back(_precise(keys), cos, -sin).to(keys.dtype)  # forward, to where they stand
            keys = torch.cat([turned, own[some]], 2)
            scores = _scores(queries[some].unflatten(1, (keys.shape[1], -1)), keys, scaling)
            scores[..., -count:].masked_fill_(later, -torch.inf)
            paid.append(scores.softmax(-1)[..., :total].mean((1, 2, 3)))
        ends = torch.cat(paid).mean(0).cumsum(0)[lengths.cumsum(0) - 1].tolist()
        shares = {id(extent): end - begin for extent, begin, end in zip(extents, [0.0, *ends], ends, strict=False)}
        self.shares = [shares[id(extent)] for extent in self._packets]


class PackedRanking:
    """Of `B` prompts that are packed into one pass.

    Args:
        layout: of the pass.
        last: `[B]` number of each prompt's last asking row among its reads.
        count: `[B]` how many rows ask, that one included.
        layers: in which.

    Attributes:
        layers: as given.
    """

    def __init__(self, layout: PackedLayout, last: torch.Tensor, count: torch.Tensor, layers: range) -> None:
        self.layers = layers
        rows = last[:, None] - torch.arange(int(count.max()), device=last.device)
        self._asks = rows > (last - count)[:, None]  # [B, n]
        self._rows = rows.clamp(min=0)
        self._packets = _packet_numbers(layout)  # [B, N]
        most = int(self._packets.max()) + 1
        self._sum = torch.zeros(len(last), max(1, most), device=last.device)

    def watch(self, query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scaling: float) -> None:
        """Add what a layer's reads `[B, HQ, R, D]` pay to keys `[B, H, N, D]`, seen where `mask` `[B, R, N]` says."""
        rows = self._rows[:, :, None]
        seen = mask.gather(1, rows.expand(-1, -1, mask.shape[2]))  # [B, n, N]
        asking = query.gather(2, rows[:, None].expand(-1, query.shape[1], -1, query.shape[3]))
        grouped = asking.unflatten(1, (keys.shape[1], -1))  # [B, H, G, n, D]
        scores = _scores(grouped, keys, scaling).masked_fill_(~seen[:, None, None], -torch.inf)
        paid = scores.softmax(-1).mean((1, 2)) * self._asks[..., None]  # [B, n, N]
        paid = paid.sum(1) / self._asks.sum(1)[:, None]
        number = self._packets.clamp(min=0)
        self._sum.scatter_add_(1, number, paid * (self._packets >= 0))

    def shares(self) -> list[list[float]]:
        """Of each prompt's packets, as `PacketRanking.shares`; zeros behind those of prompts that have fewer."""
        return (self._sum / len(self.layers)).tolist()


def _scores(query: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """`[..., H, G, n, N]` in float32 at least, from queries `[..., H, G, n, D]` and keys `[..., H, N, D]`."""
    rows = query.flatten(-3, -2)
    scores = _precise(torch.matmul(rows, keys.transpose(-2, -1))) * scaling
    return scores.unflatten(-2, query.shape[-3:-1])


def _precise(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _packet_numbers(layout: PackedLayout) -> torch.Tensor:
    """`[B, N]` which of its prompt's packets a key belongs to, -1 for what is text."""
    rows = int(layout.spans.max()) + 1 if layout.spans.numel() else 0
    span = torch.full((max(rows, int(layout.keys.max()) + 1),), -1, device=layout.keys.device)
    numbers = torch.arange(len(layout.spans), device=span.device)[:, None].expand_as(layout.spans)
    there = layout.spans >= 0
    span[layout.spans[there]] = numbers[there]
    of_key = span[layout.keys.clamp(min=0)].masked_fill(layout.keys < 0, -1)
    first = of_key.masked_fill(of_key < 0, len(layout.spans)).amin(1, keepdim=True)
    return torch.where(of_key < 0, -1, of_key - first)
