"""How a packet's numbers are stored: as they are, or in fewer bytes.

A codec acts on one layer's keys and values at a time. Everything but `raw` is a form for disks and networks: packets
are expanded when they are read, so nothing that computes knows of it. Scales are kept in float16 and chosen before
numbers are rounded, so their own rounding costs nothing.

Some models have a few key channels that are hundreds of times larger than the others (Qwen2's first and last layers, by
the bias of their key projection). Steps wide enough for these erase the others, so a layer that a codec would damage is
stored as it is: `encode_intact` says which.
"""

from abc import ABC, abstractmethod
from math import prod

import torch

from kvrag.errors import SettingsError

__all__ = ["CODECS", "Codec", "codec_from_name"]

_GROUP = 32  # numbers that share a scale in int4
_TOLERATED = 0.25  # of the median number, root mean square of the error; Gaussian numbers in int4 have 0.12
_SAMPLED = 1 << 16  # numbers of a layer that the median is taken of


class Codec(ABC):
    """Turns one layer's `[2, H, T, D]` into bytes and back.

    Attributes:
        name: part of a packet's identity.
    """

    name: str

    @abstractmethod
    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes of a layer `[2, H, T, D]`."""

    @abstractmethod
    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        """`[nbytes]` uint8 of a contiguous layer in host memory."""

    @abstractmethod
    def decode(self, data: torch.Tensor, layer: torch.Tensor) -> None:
        """Fill a contiguous layer from `[nbytes]` uint8."""

    def encode_intact(self, layer: torch.Tensor) -> torch.Tensor | None:
        """`encode`, or None if the layer would lose its meaning: the error is not small beside most of its numbers."""
        if not torch.isfinite(layer).all():
            return None
        stored, decoded = self.encode(layer), torch.empty_like(layer)
        self.decode(stored, decoded)
        for half, again in zip(layer.float(), decoded.float(), strict=True):
            flat = half.reshape(-1)
            median = flat[:: max(1, flat.numel() // _SAMPLED)].abs().median()
            if not (half - again).square().mean().sqrt() <= _TOLERATED * median:
                return None
        return stored


class _Raw(Codec):
    name = "raw"

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return prod(shape) * dtype.itemsize

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        return layer.reshape(-1).view(torch.uint8)

    def decode(self, data: torch.Tensor, layer: torch.Tensor) -> None:
        layer.reshape(-1).view(torch.uint8).copy_(data)

    def encode_intact(self, layer: torch.Tensor) -> torch.Tensor:
        return self.encode(layer)


class _ByToken(Codec):
    """One byte a number, and a scale for every token of every head.

    Args:
        name: of the codec.
        kind: of the numbers.
        largest: that a number may be.
    """

    def __init__(self, name: str, kind: torch.dtype, largest: float) -> None:
        self.name, self._kind, self._largest = name, kind, largest

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return prod(shape) + 2 * prod(shape[:3])

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        numbers = layer.float()
        scale = _scale(numbers.abs().amax(3) / self._largest)
        scaled = (numbers / scale.float()[..., None]).clamp(-self._largest, self._largest)
        stored = (scaled.round() if self._kind == torch.int8 else scaled).to(self._kind)
        return torch.cat([_bytes(stored), _bytes(scale)])

    def decode(self, data: torch.Tensor, layer: torch.Tensor) -> None:
        numbers = data[: layer.numel()].view(self._kind).view(layer.shape)
        scale = _halves(data[layer.numel() :]).view(layer.shape[:3])
        layer.copy_(numbers.float() * scale.float()[..., None])


class _Int4(Codec):
    """Half a byte a number, in the manner of KIVI (https://arxiv.org/abs/2402.02750).

    Keys share a scale and a lowest number per channel along 32 tokens, since their outliers are channels; values per
    token along 32 channels.
    """

    name = "int4"

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        _, heads, tokens, channels = shape
        of_keys, of_values = -(-tokens // _GROUP) * channels, tokens * -(-channels // _GROUP)
        return 2 * (heads * -(-tokens * channels // 2)) + 4 * heads * (of_keys + of_values)

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        return torch.cat([*self._half(layer[0], 1), *self._half(layer[1], 2)])

    def decode(self, data: torch.Tensor, layer: torch.Tensor) -> None:
        for half, dim in ((layer[0], 1), (layer[1], 2)):
            heads, tokens, channels = half.shape
            packed = data[: heads * -(-tokens * channels // 2)].view(heads, -1)
            groups = heads * (-(-tokens // _GROUP) * channels if dim == 1 else tokens * -(-channels // _GROUP))
            scale, lowest = _halves(data[packed.numel() : packed.numel() + 4 * groups]).float().view(2, -1)
            data = data[packed.numel() + 4 * groups :]
            numbers = torch.stack([packed & 15, packed >> 4], 2).view(heads, -1)[:, : tokens * channels]
            spread = [_spread(t.view(self._grouped(half.shape, dim)), half.shape[dim], dim) for t in (scale, lowest)]
            half.copy_(numbers.reshape(half.shape).float() * spread[0] + spread[1])

    def _half(self, half: torch.Tensor, dim: int) -> list[torch.Tensor]:
        numbers = half.float()
        parts = numbers.split(_GROUP, dim)
        lowest = torch.cat([part.amin(dim, keepdim=True) for part in parts], dim).half()
        highest = torch.cat([part.amax(dim, keepdim=True) for part in parts], dim)
        scale = _scale((highest - lowest.float()) / 15)
        spread = [_spread(t.float(), half.shape[dim], dim) for t in (scale, lowest)]
        stored = ((numbers - spread[1]) / spread[0]).round().clamp(0, 15).to(torch.uint8).flatten(1)
        if stored.shape[1] % 2:
            stored = torch.nn.functional.pad(stored, (0, 1))
        return [_bytes(stored[:, ::2] | stored[:, 1::2] << 4), _bytes(scale), _bytes(lowest)]

    def _grouped(self, shape: torch.Size, dim: int) -> tuple[int, ...]:
        return *shape[:dim], -(-shape[dim] // _GROUP), *shape[dim + 1 :]


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (_Raw(), _ByToken("int8", torch.int8, 127.0), _ByToken("fp8", torch.float8_e4m3fn, 448.0), _Int4())
}
"""By name: `raw`; `int8` and `fp8` take half of bfloat16's bytes, `int4` about 30 %."""


def codec_from_name(name: str) -> Codec:
    """The codec of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in CODECS:
        raise SettingsError(f"expected a codec out of {', '.join(CODECS)}, found {name!r}")
    return CODECS[name]


def _scale(wanted: torch.Tensor) -> torch.Tensor:
    return wanted.half().clamp(min=torch.finfo(torch.float16).smallest_normal)


def _spread(of_groups: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    return of_groups.repeat_interleave(_GROUP, dim).narrow(dim, 0, size)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _halves(data: torch.Tensor) -> torch.Tensor:
    """Bytes that may begin anywhere as float16."""
    return data.clone().view(torch.float16)
