"""Medians of calls that take turns, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["median_ms"]


def median_ms(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    runs: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median milliseconds of each call, until the device has done all of it.

    Args:
        calls: by name; each is made twice before it counts.
        device: waited for.
        runs: of each call.
        before: done before every call, untimed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-2, runs):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            before()
            _wait(device)
            begin = time.perf_counter()
            calls[name]()
            _wait(device)
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(of_call) for name, of_call in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
