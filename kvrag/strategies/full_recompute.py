from dataclasses import dataclass
from typing import ClassVar

from kvrag.strategies.base import Strategy

__all__ = ["FullRecompute"]


@dataclass(frozen=True)
class FullRecompute(Strategy):
    """Compute the whole prompt as text, every time: the reference for quality and for speed.

    Attributes:
        segmented: tokenise it chunk by chunk, as the attaching strategies do, so that quality is compared over the same
            tokens; by default the prompt is tokenised as one text, which is what users have without kvrag.
    """

    name: ClassVar[str] = "full-recompute"
    attaches: ClassVar[bool] = False
    keeps_computed: ClassVar[bool] = False
    segmented: bool = False

    @property
    def matches(self) -> bool:
        """Chunks are only looked for to tokenise them one by one."""
        return self.segmented
