from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvrag.framing import Framing
from kvrag.strategies.encased import Encased

__all__ = ["LegoLinkZero"]


@dataclass(frozen=True)
class LegoLinkZero(Encased):
    """Encode every chunk behind an attention sink that its packet leaves out, and repair nothing.

    Stores the chunk's own rows, encoded behind `sinks` dummy tokens that a text usually begins with: they draw the
    attention that the chunk's first tokens would draw at the beginning of a text, so that these are ordinary tokens
    wherever the packet stands. Computes the text only. Approximates: no chunk sees another, and the prompt has the sink
    once where the packets were encoded behind one each.
    Source: EPIC (https://arxiv.org/abs/2410.15332), whose LegoLink-0 this is.

    Attributes:
        sinks: dummy tokens in front of every chunk; the paper takes 4.
    """

    name: ClassVar[str] = "lego-link-0"
    sinks: int = 4

    def around(self, framing: Framing) -> tuple[Sequence[int], Sequence[int]]:
        """The token that prompts begin with, several times."""
        return [framing.sink] * self.sinks, ()
