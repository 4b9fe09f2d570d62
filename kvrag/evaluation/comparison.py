"""Answers from packets beside full recompute's, one by one, and with those recomputed that are doubtful."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Self

from kvrag.errors import SettingsError
from kvrag.evaluation.metrics import share_interval
from kvrag.strategies import FullRecompute, strategy_from_name

__all__ = ["CONFIDENCES", "AtConfidence", "Comparison", "may_fall_back"]

CONFIDENCES = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Confidences that are looked at: in steps that a hundred questions can tell apart."""


@dataclass(frozen=True)
class Comparison:
    """A question, answered both ways from the same chunks.

    Attributes:
        question: its text.
        packets: the answer of the strategy.
        full: the answer of full recompute over the same tokens.
        f1: SQuAD's F1 of the one against the other, 0 to 100.
        kl: KL(full || packets) in nats per token of full recompute's answer.
        first_token_equal: whether both begin with the same token.
        computed_tokens: rows of the prompt that the strategy computed; where it fell back, those of both times.
        prompt_tokens: rows of the prompt.
        full_tokens: rows of the prompt by full recompute, which has no soft tokens.
        probability: of the answer's likeliest first token, 0 to 1.
        fell_back: whether the strategy's own confidence had the prompt answered once more.
    """

    question: str
    packets: str
    full: str
    f1: float
    kl: float
    first_token_equal: bool
    computed_tokens: float
    prompt_tokens: int
    full_tokens: int
    probability: float
    fell_back: bool = False

    def stays(self, confidence: float) -> bool:
        """Whether the answer is kept: it is probable enough, or no packet was there that could have misled."""
        return self.probability >= confidence or self.computed_tokens >= self.prompt_tokens


@dataclass(frozen=True)
class AtConfidence:
    """The same answers where a strategy with this confidence leaves the others to full recompute.

    Attributes:
        confidence: least probability of the first token with which the answer from packets is kept.
        recomputed: share of the prompts that fall back, 0 to 1.
        first_token_agreement: share of first tokens that are full recompute's then, 0 to 1.
        first_token_low: lower end of its 95 % interval.
        f1: of the answers against full recompute's, 0 to 100.
        kl: KL(full || answers), nats per token.
        computed_tokens: rows computed until the first token, mean; where both ways are gone, those of both.
    """

    confidence: float
    recomputed: float
    first_token_agreement: float
    first_token_low: float
    f1: float
    kl: float
    computed_tokens: float

    @classmethod
    def of(cls, comparisons: Sequence[Comparison], confidence: float) -> Self:
        """Of at least one question."""
        kept = [(c, c.stays(confidence)) for c in comparisons]
        equal = share_interval(sum(c.first_token_equal or not stays for c, stays in kept), len(kept))
        return cls(
            confidence=confidence,
            recomputed=round(fmean(not stays for _, stays in kept), 4),
            first_token_agreement=round(equal.value, 4),
            first_token_low=round(equal.low, 4),
            f1=round(fmean(c.f1 if stays else 100.0 for c, stays in kept), 2),
            kl=round(fmean(c.kl if stays else 0.0 for c, stays in kept), 6),
            computed_tokens=round(fmean(c.computed_tokens + (not stays) * c.full_tokens for c, stays in kept), 1),
        )


def may_fall_back(strategy: str) -> bool:
    """Whether a strategy, by its name, keeps every answer from all packets, and could leave some to full recompute."""
    with suppress(SettingsError):
        known, doubting = (strategy_from_name(name) for name in (strategy, f"{strategy}:confidence=0.5"))
        keeps = known.fallback is None and known.narrowed is None
        return keeps and isinstance(doubting.fallback, FullRecompute)
    return False
