"""The specification of re-rotation, in plain PyTorch."""

from collections.abc import Sequence

import torch

__all__ = ["rerotate_reference", "rotate"]


def rotate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate keys forward by the angles whose cosines and sines are given, in the half-split RoPE layout.

    Shapes:
        keys:     [..., D]
        cos, sin: [E / 2]
        returns:  [..., D] in the promoted dtype
    """
    half = len(cos)
    lo, hi, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    turned = [lo * cos - hi * sin, hi * cos + lo * sin]
    return torch.cat([*turned, rest.to(turned[0].dtype)], -1)


def rerotate_reference(
    packets: Sequence[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    target: torch.Tensor,
    starts: Sequence[int],
) -> None:
    """As `rerotate`, on any device; computes in float32, or in float64 for float64 packets."""
    compute = torch.promote_types(target.dtype, torch.float32)
    for number, (packet, start) in enumerate(zip(packets, starts, strict=True)):
        c, s = (angles[number].to(target.device, compute) for angles in (cos, sin))
        room = target[:, :, :, start : start + packet.shape[3]]
        room[:, 0] = rotate(packet[:, 0].to(compute), c, s)
        room[:, 1] = packet[:, 1]
