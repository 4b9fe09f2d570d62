"""A private copy of packets, their keys turned to where they stand: for what has to change a packet's numbers."""

from collections.abc import Sequence

import torch

from kvrag_kernels.rerotate.reference import rerotate_reference, rotate

__all__ = ["rerotate", "rerotate_reference", "rotate"]


def rerotate(
    packets: Sequence[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    target: torch.Tensor,
    starts: Sequence[int],
) -> None:
    """Copy packets into one block, with keys rotated by each packet's angles.

    Shapes:
        packets:  one [L, 2, H, T, D] each, tokens of a head one behind the other
        cos, sin: [N, E / 2] float32, of N packets; the channels from E on are left alone
        target:   [L, 2, H, tokens, D], written at tokens `start .. start + T` of every packet
        starts:   N token numbers

    Raises:
        ValueError: shapes that do not fit together.
    """
    if not len(packets) == len(cos) == len(sin) == len(starts):
        raise ValueError(f"expected angles and a start for each of {len(packets)} packets, found {len(cos)}")
    for packet, start in zip(packets, starts, strict=True):
        L, _, H, T, D = packet.shape
        room = (L, 2, H, target.shape[3], D)
        if tuple(target.shape) != room or not 0 <= start <= target.shape[3] - T or packet.dtype != target.dtype:
            raise ValueError(f"expected room for {list(packet.shape)} at token {start}, found {list(target.shape)}")
    if packets and target.device.type == "cuda":
        from kvrag_kernels.rerotate.triton import rerotate_triton

        return rerotate_triton(packets, cos, sin, target, starts)
    return rerotate_reference(packets, cos, sin, target, starts)
