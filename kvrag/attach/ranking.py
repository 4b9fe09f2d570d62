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
        rows: as given.
    """

    def __init__(self, packets: list[Extent], rows: int) -> None:
        self.rows = rows
        self._packets = packets
        self._found: list[float] | Exception = []

    @property
    def shares(self) -> list[float]:
        """Of each packet, once the pass is done: the attention paid to it, mean over layers, heads and rows.

        What text and other states get is left to 1. The scales of a strategy are not in it. Raises what kept `take`
        from finding out.
        """
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def take(self, queries: torch.Tensor, lane: Lane, layers: range, rope: Rope, scaling: float) -> None:
        """Rank by the queries that a pass has left. What fails is kept for `shares`: others share the pass.

        Args:
            queries: `[l, HQ, rows, D]` of the asking rows, the lane's last ones, in the `layers`.
            lane: with these rows.
            layers: l of the model's.
            rope: of the model.
            scaling: of the scores.
        """
        try:
            paid = _paid(queries, lane, layers, rope, scaling)
        except Exception as error:
            self._found = error
            return
        of_extent = {id(extent): share for extent, share in zip(lane.extents, paid, strict=True)}
        self._found = [of_extent[id(extent)] for extent in self._packets]


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
        self._sum.scatter_add_(1, number, (paid * (self._packets >= 0)).to(self._sum.dtype))

    def shares(self) -> list[list[float]]:
        """Of each prompt's packets, as `PacketRanking.shares`; zeros behind those of prompts that have fewer."""
        return (self._sum / len(self.layers)).tolist()


def _paid(queries: torch.Tensor, lane: Lane, layers: range, rope: Rope, scaling: float) -> list[float]:
    """The attention that each extent of a lane gets, as in `PacketRanking.take`; a bounded number of scores at once."""
    extents, count, size = lane.extents, queries.shape[2], len(layers)
    lengths = [extent.tokens for extent in extents]
    total, repeats = sum(lengths), torch.tensor(lengths, device=queries.device)
    angles = (x.to(queries.device) for x in rope.angles([extent.turn for extent in extents]))
    cos, sin = (x.repeat_interleave(repeats, 0, output_size=total) for x in angles)
    later = torch.ones(count, count, dtype=torch.bool, device=queries.device).triu(1)
    own = lane.own(0, lane.length)[layers.start : layers.stop, 0]  # [l, H, N, D]
    grouped = queries.unflatten(1, (own.shape[1], -1))  # [l, H, G, n, D]
    at_once = max(1, _MOST // (grouped.shape[2] * count * (total + lane.length)))  # KV heads, whatever the layer
    some, heads = max(1, at_once // own.shape[1]), min(at_once, own.shape[1])
    paid = torch.zeros(total, dtype=torch.promote_types(queries.dtype, torch.float32), device=queries.device)
    for first in range(0, size, some):
        last = min(first + some, size)
        attached = torch.cat([e.keys_in(range(layers[first], layers[last - 1] + 1)) for e in extents], 2)
        for head in range(0, own.shape[1], heads):
            part = slice(first, last), slice(head, head + heads)
            keys = rotate_back(_precise(attached[:, part[1]]), cos, -sin)  # forward, to where they stand
            scores = _scores(grouped[part], torch.cat([keys, _precise(own[part])], 2), scaling)
            scores[..., -count:].masked_fill_(later, -torch.inf)
            paid += scores.softmax(-1)[..., :total].sum((0, 1, 2, 3))
    by_token = (paid / (queries.shape[1] * size * count)).cpu()
    return [float(part.sum()) for part in by_token.split(lengths)]


def _scores(query: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """`[..., H, G, n, N]` in float32 at least, from queries `[..., H, G, n, D]` and keys `[..., H, N, D]`."""
    rows = _precise(query).flatten(-3, -2) * scaling  # in float16, products could be more than it can hold
    return torch.matmul(rows, _precise(keys).transpose(-2, -1)).unflatten(-2, query.shape[-3:-1])


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
