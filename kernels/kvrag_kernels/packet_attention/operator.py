"""Packet attention as an operator that compilers do not look into."""

from typing import Protocol
from weakref import WeakValueDictionary

import torch

__all__ = ["attend_to_work", "register"]


class PassLayer(Protocol):
    """What the operator calls."""

    def pass_layer(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        """Attention `[S, HQ, D]` of a layer's queries, after its keys and values `[S, H, D]` are written."""
        ...


_works: "WeakValueDictionary[int, PassLayer]" = WeakValueDictionary()


def register(number: int, work: PassLayer) -> None:
    """Let the operator find work by its number, for as long as somebody keeps it."""
    _works[number] = work


@torch.library.custom_op("kvrag::attend_to_work", mutates_args=())
def attend_to_work(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, number: int, layer: int, scaling: float
) -> torch.Tensor:
    """`DeviceWork.pass_layer`.

    What it writes besides its result, only later layers and passes read, through the same buffers.
    """
    return _works[number].pass_layer(query, key, value, layer, scaling)


@attend_to_work.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, number: int, layer: int, scaling: float):
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)
