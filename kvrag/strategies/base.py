"""What every reuse strategy decides, and nothing else."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Self

from kvrag.adapter import Adapter
from kvrag.framing import Framing
from kvrag.packet import Recipe
from kvrag.prompt import Segment
from kvrag.recompute import Selection

__all__ = ["Strategy"]


@dataclass(frozen=True)
class Strategy(ABC):
    """How cached chunks are made to work out of context.

    A subclass overrides the decisions in which it differs; the defaults attach every chunk, encoded alone, at the place
    its text would have had. Strategies never time, log, score or know the store.

    Attributes:
        name: in the registry.
        attaches: whether they are attached; False computes their tokens.
        keeps_computed: whether states computed for earlier prompts may be used again.
        top_n: packets that `narrowed` is to read.
    """

    name: ClassVar[str]
    attaches: ClassVar[bool] = True
    keeps_computed: ClassVar[bool] = True
    top_n = 0

    @property
    def matches(self) -> bool:
        """Whether known chunks are looked for in the prompt; if not, it is tokenised as one text."""
        return True

    @property
    def selection(self) -> Selection | None:
        """Which of the packets' tokens are computed anew at question time; None attaches packets as they are.

        Packets are then copied for the prompt. Rows that an adapter's soft tokens have made stay as they are.
        """
        return None

    @property
    def fallback(self) -> "Strategy | None":
        """What answers instead, from the same packets or from none, where these leave the model in doubt.

        Where there is a `narrowed`, it is these packets that may.
        """
        return None

    @property
    def doubts_below(self) -> float:
        """The probability of the likeliest first token below which the fallback answers."""
        return 0.0

    @property
    def narrowed(self) -> "Strategy | None":
        """What answers from the `top_n` packets that the question attends to most, once these are known."""
        return None

    @property
    def score_scale(self) -> float:
        """Multiplies the scores of packets' tokens, besides the softmax scaling: an inverse temperature."""
        return 1.0

    @property
    def merge_scale(self) -> float:
        """Multiplies the log-sum-exp over all packets before it meets that over the computed rows."""
        return 1.0

    @property
    def packs(self) -> bool:
        """Whether many prompts can be laid out in one pass of `kvrag.packing`, which attends to all rows alike."""
        alike = self.selection is None and self.score_scale == self.merge_scale == 1.0
        return alike and all(later is None or later.packs for later in (self.narrowed, self.fallback))

    def fitted(self, framing: Framing) -> Self:
        """The strategy for one model: tokens that it was described by are ids now. A fitted one stays as it is."""
        return self

    def recipe(self, adapter: Adapter | None) -> Recipe:
        """How a chunk is built into a packet."""
        return Recipe()

    def arrange(self, segments: Sequence[Segment], adapter: Adapter | None) -> list[Segment]:
        """The segments to place, soft segments between packets included."""
        return list(segments)

    def starts(self, segments: Sequence[Segment], lengths: Sequence[int]) -> list[int]:
        """The position at which each of the segments, of `lengths` rows, stands."""
        return [0, *accumulate(lengths)][: len(lengths)]
