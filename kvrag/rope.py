"""Rotary position embeddings: which kinds can move, and the angles to move by.

Everything here follows from one identity. With a packet whose keys were rotated at local positions j and which stands
at position s of the prompt, `(R(p) q) . (R(s + j) k) = (R(p - s) q) . (R(j) k)`: the query turns back, the packet
stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from kvrag.errors import UnsupportedModelError
from kvrag.packet import digest_fields

__all__ = ["MOVABLE_ROPE_TYPES", "Rope", "check_rope_type"]

MOVABLE_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""RoPE kinds whose frequencies do not depend on the length of the prompt."""


@dataclass(frozen=True, eq=False)
class Rope:
    """The rotary embedding of one model.

    Attributes:
        inv_freq: `[E / 2]` float64, the model's own frequencies in radians per position.
        attention_scaling: the factor the model applies once to queries and once to keys (YaRN); needs no undoing.
    """

    inv_freq: torch.Tensor
    attention_scaling: float = 1.0

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 over frequencies and scaling."""
        return digest_fields(self.inv_freq.numpy().tobytes(), repr(self.attention_scaling))

    def angles(self, distances: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32 `[len(distances), E / 2]`, of turning by so many positions.

        Computed in float64: in float32 an angle at position 120,000 is off by several milliradians.
        """
        angle = torch.outer(torch.from_numpy(np.asarray(distances, np.float64)), self.inv_freq)
        return angle.cos().float(), angle.sin().float()


def check_rope_type(rope_parameters: Mapping[str, Any] | None) -> None:
    """Refuse the kinds of RoPE that a short probe cannot see through.

    Raises:
        UnsupportedModelError: the frequencies change with the length of the prompt, or differ between layers.
    """
    parameters = dict(rope_parameters or {})
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise UnsupportedModelError(
            f"expected one rotary embedding for all layers, found one per layer type ({', '.join(parameters)}); "
            "use a model with a single RoPE, such as Llama, Qwen2, Qwen3 or Mistral without a window"
        )
    kind = parameters.get("rope_type", "default")
    if kind not in MOVABLE_ROPE_TYPES:
        raise UnsupportedModelError(
            f"expected a RoPE type whose angles do not depend on the prompt's length "
            f"({', '.join(sorted(MOVABLE_ROPE_TYPES))}), found {kind!r}; its packets cannot be moved"
        )
