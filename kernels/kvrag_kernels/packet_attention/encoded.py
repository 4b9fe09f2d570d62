"""Keys and values in bytes: int8 or fp8 numbers `[2, H, T, D]` of a layer, then float16 scales `[2, H, T]` of its rows.

A number times the scale of its token and head is what a kernel computes with. Scores take the scale of a key, weights
that of a value, so numbers are never multiplied out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

__all__ = ["FORMS", "RAW", "Scaled", "expand"]

FORMS = ("raw", "int8", "fp8")
"""Forms of an extent by number; `raw` are numbers of the model's own dtype."""

RAW = 0

_KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class Scaled:
    """Numbers of one byte that are multiplied by the scale of their row.

    Attributes:
        numbers: `[..., T, D]` int8 or float8_e4m3fn.
        scales: `[..., T]` float16.
    """

    numbers: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, data: torch.Tensor, shape: Sequence[int], form: str) -> "Scaled":
        """Views of encoded layers.

        Args:
            data: `[..., B]` uint8, a layer each; what is behind its scales is not looked at.
            shape: `[2, H, T, D]` of a layer.
            form: of the numbers.
        """
        count = prod(shape)
        numbers, scales = data[..., :count], data[..., count : count + 2 * prod(shape[:3])]
        leading = data.shape[:-1]
        return cls(
            numbers.view(_KINDS[form]).view(*leading, *shape), scales.view(torch.float16).view(*leading, *shape[:3])
        )

    def __getitem__(self, number: int) -> "Scaled":
        return Scaled(self.numbers[number], self.scales[number])

    @property
    def shape(self) -> torch.Size:
        """Of the numbers."""
        return self.numbers.shape

    @property
    def form(self) -> str:
        """Of the numbers."""
        return next(form for form, kind in _KINDS.items() if kind == self.numbers.dtype)

    def to(self, dtype: torch.dtype) -> torch.Tensor:
        """What they stand for, `[..., T, D]`; multiplied in float32 at least."""
        exact = torch.promote_types(dtype, torch.float32)
        return (self.numbers.to(exact) * self.scales.to(exact)[..., None]).to(dtype)


def expand(data: torch.Tensor, shape: Sequence[int], form: str, dtype: torch.dtype) -> torch.Tensor:
    """Layers `[L, 2, H, T, D]` of `shape` from their bytes `[L, B]`, on the same device."""
    kv = torch.empty(tuple(shape), dtype=dtype, device=data.device)
    for layer, encoded in zip(kv, data, strict=True):
        layer.copy_(Scaled.of(encoded, shape[1:], form).to(dtype))
    return kv
