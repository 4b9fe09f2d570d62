from dataclasses import dataclass
from typing import ClassVar

from kvrag.recompute import AttendedEarly, Selection
from kvrag.recompute.selection import check_share
from kvrag.strategies.base import Strategy

__all__ = ["A3"]


@dataclass(frozen=True)
class A3(Strategy):
    """Recompute the tokens that the question attends to most in the first layer.

    Stores chunks encoded alone. Computes all tokens in the first layer, where the question's queries meet all keys, and
    from the second on the text and the packets' tokens that got most of its attention, mean over heads and the
    question's tokens; each sees everything before it. The question is the text behind the last packet. Approximates:
    all other tokens keep what they were encoded to, and the first layer speaks for all of them. Source: A3
    (https://arxiv.org/abs/2511.17560).

    Attributes:
        ratio: of the packets' tokens.
    """

    name: ClassVar[str] = "a3"
    ratio: float = 0.15

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio)

    @property
    def selection(self) -> Selection:
        """The tokens that the question attends to in the first layer."""
        return AttendedEarly(self.ratio)
