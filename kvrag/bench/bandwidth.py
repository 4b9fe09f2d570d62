"""What the hardware moves, measured in the run whose times it is held against."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvrag.bench.timing import median_ms
from kvrag.model import LanguageModel

__all__ = ["Bandwidth", "measure_bandwidth"]

_BYTES = 2 << 30
_CPU_BYTES = 256 << 20


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, in GB (10^9).

    Attributes:
        memory: read and written by a large copy on the device, or read by a sum, whichever is more.
        host: from pinned host memory to the device; 0 where there is no device.
    """

    memory: float
    host: float

    def floor_ms(self, model: LanguageModel, kv_bytes: int, host_bytes: int = 0) -> float:
        """What a pass takes at least: reading every weight and all attached keys and values once.

        Args:
            model: whose weights.
            kv_bytes: attached.
            host_bytes: of them that have to come from the host first; the two can go on at once.
        """
        on_device = (model.streamed_bytes + kv_bytes) / self.memory
        return max(on_device, host_bytes / self.host if host_bytes else 0.0) / 1e6


def measure_bandwidth(device: torch.device) -> Bandwidth:
    """Measure a device with nothing else running on it."""
    on_gpu = device.type == "cuda"
    size = _BYTES if on_gpu else _CPU_BYTES
    repeats = 8 if on_gpu else 1  # or a launch would count as time that the memory takes
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)

    def rate(moved: int, call: Callable[[], object]) -> float:
        def calls() -> None:
            for _ in range(repeats):
                call()

        return repeats * moved / median_ms({"": calls}, device, runs=9)[""] / 1e6

    memory = max(rate(2 * size, lambda: target.copy_(source)), rate(size, source.sum))
    if not on_gpu:
        return Bandwidth(memory, 0.0)
    pinned = torch.empty(_CPU_BYTES, dtype=torch.uint8, pin_memory=True)
    room = target.view(torch.uint8)[:_CPU_BYTES]
    return Bandwidth(memory, rate(_CPU_BYTES, lambda: room.copy_(pinned, non_blocking=True)))
