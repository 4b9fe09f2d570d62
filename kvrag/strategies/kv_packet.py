from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kvrag.adapter import Adapter
from kvrag.errors import SettingsError
from kvrag.packet import Recipe
from kvrag.prompt import PacketSegment, Segment, SoftSegment
from kvrag.recompute import AskedFirst, Selection
from kvrag.recompute.selection import check_share
from kvrag.strategies.base import Strategy
from kvrag.strategies.full_recompute import FullRecompute

__all__ = ["KVPacket"]


@dataclass(frozen=True)
class KVPacket(Strategy):
    """Attach chunks that a trained adapter has made ready for any context, and recompute nothing of them or a little.

    A chunk is encoded alone, between the adapter's header and trailer and with its writer on, and behind a sink that
    its packet leaves out, if the adapter was trained with one (as EPIC's LegoLink-0 does,
    https://arxiv.org/abs/2410.15332). Behind its packet come the link tokens, computed at question time, which see
    everything before them. Soft tokens take places in the prompt like ordinary ones. Without an adapter all of them are
    empty, and this is NoRecompute. Sources: KV Packet (https://arxiv.org/abs/2604.13226), KVLink
    (https://arxiv.org/abs/2502.16002).

    With a repair, those tokens are computed anew that the question attends to most, as ProphetKV does
    (https://arxiv.org/abs/2602.02579), in a private copy of the packets. The adapter's soft tokens stay, and tokens are
    computed without its writer, since they see everything before them. That costs a second pass and is off by default.

    With a confidence, packets are attached as they are, and only where the likeliest first token is less probable than
    that, the prompt is answered once more: with that repair, or without one by full recompute over the same tokens. A
    model that was misled by its packets is seldom sure of what it says first. It is the model's own probability that
    counts, before a temperature, a penalty or a grammar.

    With `top_n`, the question is read twice: over all packets, and then over those alone that it attended to most, the
    most attended last. That they can be attached anywhere makes it cheap: computing the same prompts as text would mean
    to compute the chunks again. Repair and confidence are about the second reading. Sources: attention as a ranking is
    in-context re-ranking's (https://arxiv.org/abs/2410.02642), the order is attention sorting's
    (https://arxiv.org/abs/2310.01427).

    Attributes:
        repair: share of the chunks' tokens that are computed anew.
        confidence: least probability of the first token with which an answer from packets as they are is kept.
        top_n: packets to answer from; 0 is all of them, in the prompt's order.
    """

    name: ClassVar[str] = "kv-packet"
    repair: float = 0.0
    confidence: float = 0.0
    top_n: int = 0

    def __post_init__(self) -> None:
        check_share("repair", self.repair)
        check_share("confidence", self.confidence)
        if type(self.top_n) is not int or self.top_n < 0:
            raise SettingsError(f"expected top_n as a number of packets, 0 for all of them, found {self.top_n!r}")

    @property
    def narrowed(self) -> Strategy | None:
        """The same without `top_n`."""
        return replace(self, top_n=0) if self.top_n else None

    @property
    def selection(self) -> Selection | None:
        """The tokens that the question attends to, over all layers."""
        return AskedFirst(self.repair) if self.repair and not self.confidence and not self.top_n else None

    @property
    def fallback(self) -> Strategy | None:
        """Repair if there is one, or full recompute."""
        if not self.confidence:
            return None
        return replace(self, confidence=0.0, top_n=0) if self.repair else FullRecompute(segmented=True)

    @property
    def doubts_below(self) -> float:
        """The confidence."""
        return self.confidence

    def recipe(self, adapter: Adapter | None) -> Recipe:
        """A chunk between as many soft tokens as the adapter has, with its writer if it has one."""
        if adapter is None:
            return Recipe()
        before, after = len(adapter.soft("header")), len(adapter.soft("trailer"))
        sink = adapter.header.sink
        return Recipe(ids_before=sink, soft_before=before, soft_after=after, writer=adapter.rank > 0, dropped=len(sink))

    def arrange(self, segments: Sequence[Segment], adapter: Adapter | None) -> list[Segment]:
        """The adapter's link tokens behind every packet."""
        links = 0 if adapter is None else len(adapter.soft("link"))
        if not links:
            return list(segments)
        link = SoftSegment("link", links)
        return [
            s for segment in segments for s in ([segment, link] if isinstance(segment, PacketSegment) else [segment])
        ]
