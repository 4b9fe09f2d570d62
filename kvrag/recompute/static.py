"""Selections that depend on nothing but lengths."""

import random
from dataclasses import dataclass

from kvrag.recompute.selection import Choice, Inquiry, PromptLayout, Selection

__all__ = ["FirstTokens", "RandomTokens"]


@dataclass(frozen=True)
class FirstTokens(Selection):
    """The first tokens of every packet that something stands before; one that nothing stands before is exact.

    Attributes:
        tokens: of each packet.
    """

    tokens: int

    def choose(self, layout: PromptLayout, inquiry: Inquiry | None) -> Choice:
        """As `Selection.choose`."""
        rows = layout.none()
        for first, last in layout.packets:
            if first > 0:
                rows[first : min(first + self.tokens, last)] = True
        return Choice(rows.to(layout.device))


@dataclass(frozen=True)
class RandomTokens(Selection):
    """So many tokens, whichever they are; prompts of the same lengths have the same ones chosen.

    Attributes:
        ratio: of all packets' tokens.
        seed: of the choice.
    """

    ratio: float
    seed: int

    def choose(self, layout: PromptLayout, inquiry: Inquiry | None) -> Choice:
        """As `Selection.choose`."""
        candidates = [row for first, last in layout.packets for row in range(first, last)]
        chosen = random.Random(self.seed).sample(candidates, round(self.ratio * len(candidates)))
        rows = layout.none()
        rows[chosen] = True
        return Choice(rows.to(layout.device))
