from dataclasses import dataclass
from typing import ClassVar

from kvrag.recompute import AskedFirst, Selection
from kvrag.recompute.selection import check_share
from kvrag.strategies.base import Strategy

__all__ = ["ProphetKV"]


@dataclass(frozen=True)
class ProphetKV(Strategy):
    """Recompute the tokens that the question attends to most when it is computed over the packets as they are.

    Stores chunks encoded alone. A first pass computes the text over the packets and notes, in every layer, how much
    attention the question pays to each of their tokens, mean over heads and the question's tokens. The mean over the
    layers ranks them. A second pass computes the text again and the first of the ranking with it, in all layers, each
    seeing everything before it. The question is the text behind the last packet. Approximates: all other tokens keep
    what they were encoded to, and the ranking comes from a question that has not seen any repair. Source: ProphetKV
    (https://arxiv.org/abs/2602.02579).

    Attributes:
        ratio: of the packets' tokens.
    """

    name: ClassVar[str] = "prophetkv"
    ratio: float = 0.2

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio)

    @property
    def selection(self) -> Selection:
        """The tokens that the question attends to, over all layers."""
        return AskedFirst(self.ratio)
