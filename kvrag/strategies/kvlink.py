from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvrag.adapter import Adapter
from kvrag.errors import AdapterError
from kvrag.prompt import PacketSegment, Segment, SoftSegment
from kvrag.strategies.base import Strategy

__all__ = ["KVLink"]


@dataclass(frozen=True)
class KVLink(Strategy):
    """Attach chunks as they were encoded, alone, and connect them by trained link tokens that see across them.

    Stores bare chunks, without a sink and without anything of an adapter around them. Computes the text and, behind
    every packet, `links` link tokens: those of the i-th see the text before them, packets 1 to i and all earlier links,
    and everything behind them sees them, so that they carry forward what the chunks cannot tell each other. Chunks keep
    contiguous positions, links included. Approximates: a chunk's own tokens see nothing but the chunk. Without links
    this is NoRecompute, which is KVLink0.

    The paper trains the whole model to read such prompts and has link tokens of its own for each of 40 places; here the
    links are soft tokens of the adapter, one set for all places, and a model trained for the pattern is chosen as any
    other model. Source: KVLink (https://arxiv.org/abs/2502.16002).

    Attributes:
        links: tokens behind every packet, the first of the adapter's; None takes all that it has, which may be none.
    """

    name: ClassVar[str] = "kvlink"
    links: int | None = None

    def arrange(self, segments: Sequence[Segment], adapter: Adapter | None) -> list[Segment]:
        """Link tokens behind every packet.

        Raises:
            AdapterError: the adapter has fewer link tokens than asked for.
        """
        trained = 0 if adapter is None else len(adapter.soft("link"))
        count = trained if self.links is None else self.links
        if count > trained:
            raise AdapterError(
                f"expected an adapter with {count} link tokens, found {trained}; train one with --link {count}, or ask "
                "for as many as there are"
            )
        arranged: list[Segment] = []
        for segment in segments:
            arranged.append(segment)
            if count and isinstance(segment, PacketSegment):
                arranged.append(SoftSegment("link", count))
        return arranged
