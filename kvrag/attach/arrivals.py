"""Packets on their way to a GPU: copied layer by layer while a pass computes the layers before."""

from collections.abc import Sequence

import torch

__all__ = ["Arrivals"]

_PIECE = 8 << 20  # bytes; between copies of one layer of a packet the bus would stand still for a tenth of the time


class Arrivals:
    """Copies from host memory, on a stream of their own, that passes wait for layer by layer.

    Recorded passes wait too: events are recorded anew by every load, and what has arrived long ago is not waited for.

    Args:
        layers: of the model.
        device: where to; elsewhere than on a GPU copies are done at once.

    Attributes:
        moves: how often packets that had arrived were moved; places known from before are stale.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self.moves = 0
        self._layers = layers
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._events: list[torch.cuda.Event] = []
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []
        if self._stream is not None:
            self._events = [torch.cuda.Event(external=True) for _ in range(layers)]
            for event in self._events:
                event.record(self._stream)  # an event that was never recorded is not waited for, recorded pass or not

    def load(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Have packets copied by `begin`, or by whoever waits: what a pass needs first shall not queue behind them.

        Args:
            pairs: where to and from where, `[L, ...]` each; sources in pinned memory are not waited for.
        """
        if self._stream is not None:
            self._pending.extend(pairs)
            return
        for target, source in pairs:
            target.copy_(source)

    def begin(self) -> None:
        """Begin to copy, behind everything that was launched before."""
        if not self._pending or self._stream is None:
            return
        pairs, self._pending = self._pending, []
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        smallest = min(source[0].nbytes for _, source in pairs)
        together = min(self._layers, max(1, _PIECE // max(1, smallest)))
        with torch.cuda.stream(self._stream):
            for first in range(0, self._layers, together):
                layers = slice(first, first + together)
                for target, source in pairs:
                    target[layers].copy_(source[layers], non_blocking=True)
                for event in self._events[layers]:
                    event.record(self._stream)

    def wait(self, layer: int) -> None:
        """Have the current stream wait until a layer of everything has arrived."""
        if self._stream is not None:
            self.begin()
            torch.cuda.current_stream(self._stream.device).wait_event(self._events[layer])

    def wait_for_all(self) -> None:
        """Have the current stream wait until everything has arrived."""
        if self._stream is not None:
            self.begin()
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
