"""Computing a prompt's text and the chosen tokens of its packets in one pass."""

from typing import TYPE_CHECKING

import torch

from kvrag.attach import PrivatePass
from kvrag.recompute.selection import PromptLayout, Selection

if TYPE_CHECKING:
    from kvrag.model import LanguageModel, Rows

__all__ = ["Repair"]


class Repair:
    """What makes the rows of a prompt out of its text and a private copy of its packets.

    Args:
        selection: of the packets' tokens that are computed anew.
        layout: of the prompt.

    Attributes:
        computed: rows computed, mean over the layers, all passes together; those of the text until the pass is done.
        fresh: rows of the prompt that were computed, likewise, however often.
    """

    def __init__(self, selection: Selection, layout: PromptLayout) -> None:
        self.computed: float = int(layout.is_text.sum())
        self.fresh = self.computed
        self._selection = selection
        self._layout = layout

    def forward(self, model: "LanguageModel", rows: "Rows") -> torch.Tensor:
        """Logits `[vocab]` of the last row. The lane gains all rows of the prompt that are kept.

        Args:
            model: to run on.
            rows: all of the prompt, in the order of the prompt; the lane's block has the packets at their places.
        """
        layout, lane, tokens = self._layout, rows.lane, self._layout.tokens
        ids, positions = torch.tensor([rows.ids, rows.positions], device=model.device)
        embeds = model.embed(ids)
        for first, given in rows.soft:
            embeds[first : first + len(given)] = given
        last = torch.tensor([-1], device=model.device)
        computed = 0
        inquiry = self._selection.inquire(layout)
        if inquiry is not None:
            asking = PrivatePass(lane, inquiry.places, tokens, watch=inquiry.watch, sees=inquiry.sees)
            model.run(embeds[inquiry.places], positions[inquiry.places], asking, last)
            computed += asking.computed
        choice = self._selection.choose(layout, inquiry)
        places = (layout.is_text | choice.rows).nonzero()[:, 0]
        embeds, positions = embeds[places], positions[places]
        if choice.kept is not None:
            kept = layout.is_text | choice.kept
            lane.select(kept.nonzero()[:, 0])
            places, tokens = (kept.cumsum(0) - 1)[places], int(kept.sum())
        current = PrivatePass(lane, places, tokens, watch=choice.watch, share=choice.share)
        with model.narrowing(current):
            (logits,) = model.run(embeds, positions, current, last)
        current.commit()
        self.fresh = current.computed / layout.layers
        self.computed = computed / layout.layers + self.fresh
        return logits
