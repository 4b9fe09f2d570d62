"""A prompt that is ready for the device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from kvrag.packet import Packet, PacketKey
from kvrag.prompt import PacketSegment, Segment, SoftSegment
from kvrag.recompute import Selection

__all__ = ["Prepared", "certainty"]


@dataclass(frozen=True)
class Prepared:
    """A prompt whose packets are in host memory; everything but the device's part is done.

    Attributes:
        segments: in the order of the prompt.
        starts: the position of each segment.
        packets: of the packet segments.
        soft: embeddings `[n, hidden]` of the soft segments by name.
        chain: digest of what the computed states depend on besides the segments.
        keeps_computed: whether earlier states may be used and new ones kept.
        missed: known texts in it whose packets are not there.
        selection: of the packets' tokens that are computed anew; None attaches packets as they are.
        score_scale, merge_scale: of its packets, as the strategy has them.
        fallback: the prompt as it is computed where packets leave the model in doubt; None keeps any answer.
        doubts_below: probability of the likeliest first token below which they do.
        narrow: makes the prompt that is answered of the attention that each packet segment gets; None answers this one.
        kept: which packets of the prompt it was narrowed from it has, the most attended last; None if it was not.
        fell_back: whether it is a fallback.
    """

    segments: Sequence[Segment]
    starts: Sequence[int]
    packets: Mapping[PacketKey, Packet]
    soft: Mapping[str, torch.Tensor]
    chain: str
    keeps_computed: bool
    missed: Mapping[PacketKey, str] = field(default_factory=dict)
    selection: Selection | None = None
    score_scale: float = 1.0
    merge_scale: float = 1.0
    fallback: "Prepared | None" = None
    doubts_below: float = 0.0
    narrow: "Callable[[Sequence[float]], Prepared] | None" = None
    kept: tuple[int, ...] | None = None
    fell_back: bool = False

    @cached_property
    def tokens(self) -> int:
        """Number of rows of the prompt, attached and computed."""
        return sum(self.length(segment) for segment in self.segments)

    @cached_property
    def end(self) -> int:
        """The position behind the prompt."""
        return max(start + self.length(segment) for start, segment in zip(self.starts, self.segments, strict=True))

    @property
    def token_ids(self) -> list[int]:
        """The prompt's token ids, those of packets included and soft tokens left out."""
        return [i for segment in self.segments if not isinstance(segment, SoftSegment) for i in segment.ids]

    def instead(self, logits: torch.Tensor) -> "Prepared | None":
        """The fallback, if it has to answer by the model's logits `[vocab]` of the first token."""
        if self.fallback is None or certainty(logits) >= self.doubts_below:
            return None
        return self.fallback

    def length(self, segment: Segment) -> int:
        """Rows of a segment."""
        if isinstance(segment, PacketSegment):
            return self.packets[segment.key].tokens
        return segment.tokens if isinstance(segment, SoftSegment) else len(segment.ids)


def certainty(logits: torch.Tensor) -> float:
    """The probability of the likeliest token by logits `[vocab]`: what a confidence is compared with."""
    return float(logits.float().softmax(-1).max())
