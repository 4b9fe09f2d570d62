from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvrag.adapter import Adapter
from kvrag.prompt import PacketSegment, Segment
from kvrag.strategies.base import Strategy

__all__ = ["PrefixCache"]


@dataclass(frozen=True)
class PrefixCache(Strategy):
    """Reuse only what is exact: a common beginning of this prompt and earlier ones, and a packet at the very beginning.

    Stores chunks encoded alone, and uses one of them if nothing stands before it: that is where it was encoded. All
    other chunks are computed as text, over the same tokens, and whatever an earlier prompt computed for the same
    beginning is taken from it, chunks among it, as far as the engine keeps it (`computed_bytes`); serving systems with
    a prefix cache do the same (https://arxiv.org/abs/2309.06180). Approximates nothing: answers are those of full
    recompute. So this is how much reuse saves without any loss.
    """

    name: ClassVar[str] = "prefix-cache"

    def arrange(self, segments: Sequence[Segment], adapter: Adapter | None) -> list[Segment]:
        """A packet that opens the prompt, and all others as text."""
        return [*segments[:1], *(s.as_text() if isinstance(s, PacketSegment) else s for s in segments[1:])]
