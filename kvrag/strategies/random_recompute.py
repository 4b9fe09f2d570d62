from dataclasses import dataclass
from typing import ClassVar

from kvrag.recompute import RandomTokens, Selection
from kvrag.recompute.selection import check_share
from kvrag.strategies.base import Strategy

__all__ = ["RandomRecompute"]


@dataclass(frozen=True)
class RandomRecompute(Strategy):
    """Recompute tokens of the packets that were drawn at random: the control for every way of choosing them.

    Stores chunks encoded alone. Computes the text and the drawn tokens, in all layers, each seeing everything before
    it. Approximates: all other tokens keep what they were encoded to.

    Attributes:
        ratio: of the packets' tokens.
        seed: of the draw; prompts whose packets have the same lengths have the same tokens drawn.
    """

    name: ClassVar[str] = "random-recompute"
    ratio: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio)

    @property
    def selection(self) -> Selection:
        """Tokens drawn at random."""
        return RandomTokens(self.ratio, self.seed)
