"""Which pass answers the attention layers where."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kvrag.attach.attention import AttentionPass
from kvrag.attach.lane import Geometry, Lane
from kvrag.attach.plain import PlainPass
from kvrag.rope import Rope

if TYPE_CHECKING:
    from kvrag.attach.device import DevicePass, DeviceWorks

__all__ = ["Passes"]


class Passes:
    """Makes the passes of one model.

    Args:
        geometry: of the model.
        rope: of the model.
        dtype: of keys and values.
        device: of the model.

    Attributes:
        works: of the kernels for GPUs; None where they cannot be used.
    """

    def __init__(self, geometry: Geometry, rope: Rope, dtype: torch.dtype, device: torch.device) -> None:
        self._rope, self._asking = rope, geometry.asking
        self.works: DeviceWorks | None = None
        if device.type == "cuda" and _has_triton():
            from kvrag.attach import device as kernels

            self.works = kernels.DeviceWorks.of(geometry, rope, dtype, device)

    def new(
        self, lanes: Sequence[Lane], rows: Sequence[int], *, asking: bool = False
    ) -> "AttentionPass | DevicePass | PlainPass":
        """A forward pass over `rows` rows of each lane, which keeps the queries of `Geometry.asking` if it is to."""
        if self.works is None:
            return AttentionPass(lanes, rows, self._rope, self._asking if asking else range(0))
        if PlainPass.takes(lanes):
            return PlainPass(lanes, rows)
        from kvrag.attach.device import DevicePass

        return DevicePass(lanes, rows, self._rope, self.works, asking=asking)


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401  # an extra
    except ImportError:
        return False
    return True
