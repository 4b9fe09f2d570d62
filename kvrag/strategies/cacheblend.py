from dataclasses import dataclass
from typing import ClassVar

from kvrag.recompute import Deviating, Selection
from kvrag.recompute.selection import check_share
from kvrag.strategies.base import Strategy

__all__ = ["CacheBlend"]


@dataclass(frozen=True)
class CacheBlend(Strategy):
    """Recompute, layer by layer, the tokens whose keys and values deviate most from those of their packets.

    Stores chunks encoded alone. Computes all tokens in the first two layers: in the first one keys and values know no
    context yet, so the second is the first that shows a deviation. From the third layer on only the text is computed,
    and of the packets a share that shrinks from layer to layer (the paper's gradual filtering), chosen among the tokens
    of the layer before by the distance of new keys and values from the packet's. Attention is exact in every layer: a
    token sees everything before it, new where there is something new. Approximates: a token that is left out keeps
    the keys and values of its packet, and its place in the ranking does not change any more. The paper gives the mean
    share, not how fast it falls; `spread` is ours. The released code chooses once, by values alone, and lets the
    question's tokens compete; this does not. Source: CacheBlend (https://arxiv.org/abs/2405.16444).

    Attributes:
        ratio: of the packets' tokens, mean over the layers from the third on.
        spread: how far the share begins above that mean and ends below it, as a share of it.
    """

    name: ClassVar[str] = "cacheblend"
    ratio: float = 0.15
    spread: float = 0.2

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio)
        check_share("spread", self.spread)

    @property
    def selection(self) -> Selection:
        """The tokens that deviate most."""
        return Deviating(self.ratio, self.spread)
