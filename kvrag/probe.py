"""Does a packet of this model mean the same at another position? Measured at load, not believed from a list."""

import torch

from kvrag.attach import Extent
from kvrag.errors import UnsupportedModelError
from kvrag.model import LanguageModel, Rows

__all__ = ["ATTACHED_TOKENS", "check_movable", "probe_error"]

ATTACHED_TOKENS = 48
_QUESTION_TOKENS = 8
_POSITION = 1000
_FLOOR = {torch.float64: 1e-3, torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
_CEILING = 0.08


def probe_error(model: LanguageModel) -> tuple[float, float]:
    """Attach one packet far from where it was encoded and compare with the model's own forward over the same tokens.

    Returns:
        The relative error of the last row's logits, and the error that would be tolerated: four times what the model
        itself differs by between two of its attention implementations, within bounds that depend on the dtype.

    Raises:
        UnsupportedModelError: the model's attention cannot be attached to at all.
    """
    total = ATTACHED_TOKENS + _QUESTION_TOKENS
    start = max(0, min(_POSITION, model.max_positions - total))
    vocabulary = int(model.config.vocab_size)
    ids = [(7 + 7919 * i) % vocabulary for i in range(total)]
    positions = range(start, start + total)
    encoded = model.new_lane(ATTACHED_TOKENS)
    model.forward([Rows(encoded, ids[:ATTACHED_TOKENS], range(ATTACHED_TOKENS))])
    lane = model.new_lane(_QUESTION_TOKENS)
    lane.attach([Extent(encoded.own(0, ATTACHED_TOKENS), start, 0)])
    attached = model.forward([Rows(lane, ids[ATTACHED_TOKENS:], positions[ATTACHED_TOKENS:])])[-1]
    own = model.plain_forward(ids, positions)[-1]
    noise = max(
        _relative(model.plain_forward(ids, positions, implementation=name)[-1], own) for name in ("eager", "sdpa")
    )
    return _relative(attached, own), min(max(_FLOOR[model.dtype], 4 * noise), _CEILING)


def check_movable(model: LanguageModel) -> None:
    """Refuse a model whose packets mean something else at another position.

    Raises:
        UnsupportedModelError: with the error that was measured.
    """
    error, tolerated = probe_error(model)
    if not error <= tolerated:
        raise UnsupportedModelError(
            f"expected a packet attached at position {_POSITION} to give the logits of {model.name}'s own forward "
            f"within {tolerated:.1e}, found a relative error of {error:.1e}; this model positions its tokens in "
            "a way that packets cannot follow"
        )


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 distance of logits, whose common offset means nothing."""
    a, b = ((x.double() - x.double().mean()) for x in (actual, expected))
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
