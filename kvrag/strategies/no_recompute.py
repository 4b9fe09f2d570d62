from dataclasses import dataclass
from typing import ClassVar

from kvrag.strategies.base import Strategy

__all__ = ["NoRecompute"]


@dataclass(frozen=True)
class NoRecompute(Strategy):
    """Attach every chunk as it was encoded, alone, and repair nothing.

    The lower bound of quality among position-independent caches, at the lowest cost: the position scheme of TurboRAG's
    reordered positions (https://arxiv.org/abs/2410.07590) on a model that was not trained for it.
    """

    name: ClassVar[str] = "no-recompute"
