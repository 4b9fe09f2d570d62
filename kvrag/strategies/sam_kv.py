from dataclasses import dataclass
from typing import ClassVar

from kvrag.errors import SettingsError
from kvrag.recompute import RelevantBlocks, Selection
from kvrag.recompute.selection import check_share
from kvrag.strategies.base import Strategy

__all__ = ["SamKV"]


@dataclass(frozen=True)
class SamKV(Strategy):
    """Keep of every chunk its two ends and what the question looks for, recompute that, and leave everything else out.

    Stores chunks encoded alone. A first pass computes the text over the two ends of every packet only, which gives the
    question's mean query in the stable layers (here the last eighth). Each packet's own query adds the mean queries of
    the other packets' last tokens, weighted by their likeness to the question's. By it blocks of tokens are compared
    with the packet's ends, and the share of those worth more decides how many blocks are kept. A second pass computes
    the text and all kept tokens, in all layers, each seeing the kept ones before it. Positions stay what they were.
    Approximates: what is left out is seen by nobody, in decoding neither, so memory shrinks too. The paper stores the
    mean queries with the chunk; packets hold none, so the last tokens go through the first pass again, which the rows
    computed count. Source: SamKV (https://arxiv.org/abs/2508.11661), written for chunks of some thousand tokens; the
    sizes here are for chunks of some hundred.

    Attributes:
        initial, local: first and last tokens of every packet that are kept.
        block: tokens of a block between them.
        ratio: of a packet's blocks to keep; None finds it packet by packet, as the paper does.
        share: of the new keys and values in what is used: 1 is the paper's overwriting, less its fusion.
    """

    name: ClassVar[str] = "sam-kv"
    initial: int = 8
    local: int = 8
    block: int = 16
    ratio: float | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.ratio is not None:
            check_share("ratio", self.ratio)
        if self.initial < 0 or self.local < 1 or self.block < 1:
            raise SettingsError(
                f"expected at least 0 initial, 1 local token and blocks of 1, found {self.initial}, {self.local} and "
                f"{self.block}"
            )

    @property
    def selection(self) -> Selection:
        """Both ends of every packet, and the blocks that the question looks for."""
        return RelevantBlocks(self.initial, self.local, self.block, self.ratio, self.share)
