from dataclasses import dataclass
from typing import ClassVar

from kvrag.errors import SettingsError
from kvrag.recompute import FirstTokens, Selection
from kvrag.strategies.base import Strategy

__all__ = ["LegoLink"]


@dataclass(frozen=True)
class LegoLink(Strategy):
    """Recompute the first tokens of every chunk, which were encoded as if a text began there.

    Stores chunks encoded alone, so that their first tokens draw attention as a text's first tokens do. Computes the
    text and the first `tokens` tokens of every packet, in all layers, each seeing everything before it; a packet that
    stands at the very beginning of the prompt is exact and left alone. Approximates: all other tokens keep what they
    were encoded to. The choice depends on lengths only, so its cost grows with the number of packets, not with their
    length.
    Source: EPIC (https://arxiv.org/abs/2410.15332), whose LegoLink-k this is, k being `tokens`.

    Attributes:
        tokens: of each packet; the paper tries 2 to 32.
    """

    name: ClassVar[str] = "lego-link"
    tokens: int = 16

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise SettingsError(f"expected a number of tokens, found {self.tokens}")

    @property
    def selection(self) -> Selection:
        """The first tokens of every packet."""
        return FirstTokens(self.tokens)
