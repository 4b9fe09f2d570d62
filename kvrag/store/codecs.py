"""How a packet's numbers are stored: as they are, or in fewer bytes.

A codec acts on one layer's keys and values at a time. Kernels for GPUs read the bytes of `int8` and `fp8` as they are;
`int4` is a form for disks and networks, expanded when a packet is read, and so are the others on a CPU. Scales are kept
in float16 and chosen before numbers are rounded, so their own rounding costs nothing.

Some models have a few key channels that are hundreds of times larger than the others (Qwen2's first and last layers, by
the bias of their key projection). Steps wide enough for these erase the others, so a layer that a codec would damage is
stored as it is: `encode_intact` says which.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod

import torch

from kvrag.errors import SettingsError

__all__ = ["CODECS", "Codec", "codec_from_name"]

_BLOCK = 1 << 17  # numbers that are worked on at a time: in float32 half a MiB, which a core's own cache holds
_GROUP = 32  # numbers that share a scale in int4
_FP8_UNIT = 256.0  # what separates the exponents of float8_e4m3fn and float16
_TOLERATED = 0.25  # of the median number, root mean square of the error; Gaussian numbers in int4 have 0.12
_SAMPLED = 1 << 16  # numbers of a layer that the median is taken of


class Codec(ABC):
    """Turns one layer's `[2, H, T, D]` into bytes and back.

    Attributes:
        name: part of a packet's identity.
        attended: whether kernels read its bytes, which are then laid out as `kvrag_kernels` says.
    """

    name: str
    attended = False

    @abstractmethod
    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes of a layer `[2, H, T, D]`."""

    @abstractmethod
    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        """`[nbytes]` uint8 of a contiguous layer, on its device."""

    @abstractmethod
    def decode(self, data: torch.Tensor, layer: torch.Tensor) -> None:
        """Fill a contiguous layer from `[nbytes]` uint8 on the same device."""

    def encode_intact(self, layer: torch.Tensor) -> torch.Tensor | None:
        """`encode`, or None if the layer would lose its meaning: the error is not small beside most of its numbers."""
        if not torch.isfinite(layer).all():
            return None
        stored, decoded = self.encode(layer), torch.empty_like(layer)
        self.decode(stored, decoded)
        for half, again in zip(layer, decoded, strict=True):
            numbers = half.to(torch.float32, copy=True)
            flat = numbers.reshape(-1)
            median = flat[:: max(1, flat.numel() // _SAMPLED)].abs().median()
            if not numbers.sub_(again).square_().mean().sqrt() <= _TOLERATED * median:
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

    attended = True

    def __init__(self, name: str, kind: torch.dtype, largest: float) -> None:
        self.name, self._kind, self._largest = name, kind, largest

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return prod(shape) + 2 * prod(shape[:3])

    def encode(self, layer: torch.Tensor) -> torch.Tensor:
        rows = layer.reshape(-1, layer.shape[3])
        data = torch.empty(self.nbytes(layer.shape, layer.dtype), dtype=torch.uint8, device=layer.device)
        stored = data[: layer.numel()].view(self._kind).view(rows.shape)
        scale = torch.empty(len(rows), 1, dtype=torch.float16, device=layer.device)
        for block in _blocks(len(rows), layer.shape[3], layer.device):
            numbers = rows[block].to(torch.float32, copy=True)
            scale[block] = _scale(numbers.abs().amax(1, keepdim=True) / self._largest)
            numbers.div_(scale[block].float()).clamp_(-self._largest, self._largest)
            stored[block].copy_(numbers.round_() if self._kind == torch.int8 else numbers)
        data[layer.numel() :] = _bytes(scale)
        return data

    def decode(self, data: torch.Tensor, layer: torch.Tensor) -> None:
        rows = layer.view(-1, layer.shape[3])
        stored = data[: layer.numel()].view(torch.int8).view(rows.shape)
        scale = _halves(data[layer.numel() :]).float().view(-1, 1)
        if self._kind != torch.int8:
            scale.mul_(_FP8_UNIT)
        for block in _blocks(len(rows), layer.shape[3], data.device):
            rows[block] = self._expanded(stored[block]).mul_(scale[block])

    def _expanded(self, stored: torch.Tensor) -> torch.Tensor:
        """float32 of int8 numbers, or of fp8 ones in units of 256: their bits are those of such a float16."""
        if self._kind == torch.int8:
            return stored.float()
        return stored.short().mul_(128).bitwise_and_(~0x4000).view(torch.float16).float()  # one sign bit, not two


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
            grouped = self._grouped(half.shape, dim)
            groups = prod(grouped)
            scales = _halves(data[packed.numel() : packed.numel() + 4 * groups]).float().view(2, *grouped)
            data = data[packed.numel() + 4 * groups :]
            for block in _blocks(heads, tokens * channels, data.device):
                pairs = packed[block].short()  # [heads, bytes]: spread to a number in each byte
                pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F)
                numbers = pairs.view(torch.uint8)[:, : tokens * channels].float().view(-1, tokens, channels)
                for part, of_groups in _grouped_parts(numbers, scales[:, block], dim):
                    part.mul_(of_groups[0]).add_(of_groups[1])
                half[block] = numbers

    def _half(self, half: torch.Tensor, dim: int) -> list[torch.Tensor]:
        heads, tokens, channels = half.shape
        packed = torch.empty(heads, -(-tokens * channels // 2), dtype=torch.uint8, device=half.device)
        scales = torch.empty(2, *self._grouped(half.shape, dim), dtype=torch.float16, device=half.device)
        for block in _blocks(heads, tokens * channels, half.device):
            numbers = half[block].to(torch.float32, copy=True)
            for part, (scale, lowest) in _grouped_parts(numbers, scales[:, block], dim):
                lowest.copy_(part.amin(dim + 1, keepdim=True))
                scale.copy_(_scale((part.amax(dim + 1, keepdim=True) - lowest.float()) / 15))
                part.sub_(lowest.float()).div_(scale.float())
            codes = torch.zeros(len(numbers), 2 * packed.shape[1], dtype=torch.uint8, device=half.device)
            codes[:, : tokens * channels] = numbers.round_().clamp_(0, 15).flatten(1)
            pairs = codes.view(torch.int16)
            packed[block] = pairs.bitwise_or_(pairs >> 4).bitwise_and_(255)
        return [_bytes(packed), _bytes(scales)]

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


def _blocks(rows: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows of so many numbers each that fit into a core's cache; on a GPU all of them."""
    step = max(1, _BLOCK // numbers) if device.type == "cpu" else rows
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def _grouped_parts(
    numbers: torch.Tensor, of_groups: torch.Tensor, dim: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of numbers with their groups in a dimension behind `dim`, and of what belongs to them, one number a group.

    The groups of 32 are one part, and what is left of them is another.
    """
    whole = numbers.shape[dim] // _GROUP
    if whole:
        groups = numbers.narrow(dim, 0, whole * _GROUP).unflatten(dim, (whole, _GROUP))
        yield groups, of_groups.narrow(dim + 1, 0, whole).unsqueeze(dim + 2)
    if numbers.shape[dim] % _GROUP:
        rest = numbers.narrow(dim, whole * _GROUP, numbers.shape[dim] % _GROUP)
        yield rest.unsqueeze(dim), of_groups.narrow(dim + 1, whole, 1).unsqueeze(dim + 2)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _halves(data: torch.Tensor) -> torch.Tensor:
    """Bytes that may begin anywhere as float16."""
    return data.clone().view(torch.float16)
