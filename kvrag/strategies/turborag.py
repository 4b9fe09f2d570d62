from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvrag.prompt import Segment
from kvrag.strategies.base import Strategy
from kvrag.strategies.positions import parallel_starts

__all__ = ["TurboRAGComposite"]


@dataclass(frozen=True)
class TurboRAGComposite(Strategy):
    """Attach every chunk as it was encoded, alone, at the very positions it was encoded at.

    Stores bare chunks. Computes the text only. Nothing is moved: all packets stand at position 0, over the text in
    front of them and over each other, and the text after them goes on behind the longest. Approximates: no chunk sees
    another, and their order is lost. These are the composite positions of TurboRAG
    (https://arxiv.org/abs/2410.07590), the weaker of its two schemes; the other, reordered positions, is NoRecompute,
    and so is that of Block-Attention (https://arxiv.org/abs/2409.15355). Both papers fine-tune the model, which is
    another `--model` here.
    """

    name: ClassVar[str] = "turborag-composite"

    def starts(self, segments: Sequence[Segment], lengths: Sequence[int]) -> list[int]:
        """All packets at position 0."""
        return parallel_starts(segments, lengths, at=0)
