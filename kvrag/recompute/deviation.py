"""Selection layer by layer, by how far new keys and values are from the packets' own."""

from dataclasses import dataclass

import torch

from kvrag.attach import Seen
from kvrag.recompute.selection import Choice, Inquiry, PromptLayout, Selection

__all__ = ["Deviating"]

_WHOLE = 2  # layers: the first has no deviation, since keys and values of embeddings alone know no context


@dataclass(frozen=True)
class Deviating(Selection):
    """Tokens whose keys and values deviate most, out of those of the layer before: a set that only shrinks.

    The first two layers compute all tokens. What deviates most in the second goes on to the third, and so on; the share
    that goes on falls evenly from `ratio * (1 + spread)` to `ratio * (1 - spread)`, so that its mean is `ratio`.

    Attributes:
        ratio: of all packets' tokens, mean over the layers that choose; 0 computes none in any layer.
        spread: of that ratio; less where it would exceed 1.
    """

    ratio: float
    spread: float

    def choose(self, layout: PromptLayout, inquiry: Inquiry | None) -> Choice:
        """As `Selection.choose`."""
        if not self.ratio:
            return Choice(layout.none().to(layout.device))

        def watch(seen: Seen) -> torch.Tensor | None:
            following = seen.layer + 1
            if following < _WHOLE or following >= layout.layers:
                return None
            is_text = layout.is_text[seen.places]
            texts = int(is_text.sum())
            count = texts + round(self.share(following, layout.layers) * layout.packet_tokens)
            if count >= len(seen.places):
                return None
            return kv_deviation(seen).masked_fill(is_text, torch.inf).topk(count).indices.sort().values

        return Choice(layout.is_token, watch)

    def share(self, layer: int, layers: int) -> float:
        """Of all packets' tokens, those that a layer computes."""
        if not self.ratio or layer < _WHOLE:
            return float(bool(self.ratio))
        spread = min(self.spread, 1 / self.ratio - 1)
        steps = layers - 1 - _WHOLE
        progress = (layer - _WHOLE) / steps if steps > 0 else 0.5
        return self.ratio * (1 + spread * (1 - 2 * progress))


def kv_deviation(seen: Seen) -> torch.Tensor:
    """`[S]` squared distance of each row's keys and values of all heads from what they were."""
    keys, values = seen.key.float() - seen.old_key, seen.value.float() - seen.old_value
    return keys.square().sum((0, 2)) + values.square().sum((0, 2))
