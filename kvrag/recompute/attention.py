"""Selections by what the question attends to."""

from dataclasses import dataclass

import torch

from kvrag.attach import Seen
from kvrag.recompute.selection import Choice, Inquiry, PromptLayout, Selection

__all__ = ["AskedFirst", "AttendedEarly"]


@dataclass(frozen=True)
class AskedFirst(Selection):
    """Tokens that the question attends to most over the packets as they are, mean over all layers.

    That takes a pass over the prompt's text, before the one that computes text and chosen tokens.

    Attributes:
        ratio: of all packets' tokens.
    """

    ratio: float

    def inquire(self, layout: PromptLayout) -> "Inquiry":
        """A pass over the text."""
        return _Attention(layout)

    def choose(self, layout: PromptLayout, inquiry: Inquiry | None) -> Choice:
        """As `Selection.choose`."""
        assert isinstance(inquiry, _Attention)
        rows = layout.none().to(layout.device)
        rows[_highest(inquiry.mass, layout, self.ratio)] = True
        return Choice(rows)


@dataclass(frozen=True)
class AttendedEarly(Selection):
    """Tokens that the question attends to most in the first layer, which computes all tokens.

    Attributes:
        ratio: of all packets' tokens, in all other layers; 0 computes none in any layer.
    """

    ratio: float

    def choose(self, layout: PromptLayout, inquiry: Inquiry | None) -> Choice:
        """As `Selection.choose`."""
        if not self.ratio:
            return Choice(layout.none().to(layout.device))

        def watch(seen: Seen) -> torch.Tensor | None:
            if seen.layer or self.ratio == 1:
                return None
            stays = layout.is_text.clone()
            stays[_highest(question_attention(seen, layout), layout, self.ratio)] = True
            return stays.nonzero()[:, 0]

        return Choice(layout.is_token, watch)


def question_attention(seen: Seen, layout: PromptLayout) -> torch.Tensor:
    """`[N]` float32 attention that each row gets from the question's, mean over them and over heads."""
    count = layout.tokens - layout.question  # the last rows of every pass, since text is always computed
    query = seen.query[:, -count:].float().unflatten(0, (len(seen.keys), -1))
    scores = torch.matmul(query, seen.keys.float()[:, None].transpose(2, 3)).mul_(seen.scaling)  # [H, G, n, N]
    later = torch.ones(count, count, dtype=torch.bool, device=layout.device).triu(1)
    scores[..., layout.question :].masked_fill_(later, -torch.inf)
    return scores.softmax(-1).mean((0, 1, 2))


class _Attention(Inquiry):
    """Sums up what the question attends to."""

    def __init__(self, layout: PromptLayout) -> None:
        self.places = layout.is_text.nonzero()[:, 0]
        self.mass = torch.zeros(layout.tokens, device=layout.device)
        self._layout = layout

    def watch(self, seen: Seen) -> None:
        """As `Inquiry.watch`."""
        self.mass += question_attention(seen, self._layout)


def _highest(mass: torch.Tensor, layout: PromptLayout, ratio: float) -> torch.Tensor:
    """The packets' rows of the highest mass."""
    return mass.masked_fill(~layout.is_token, -torch.inf).topk(round(ratio * layout.packet_tokens)).indices
