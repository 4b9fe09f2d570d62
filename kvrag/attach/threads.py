"""Keeping CPU threads for the one thread that computes.

PyTorch's CPU kernels run on OpenMP, which gives every thread that has ever called one a team of helpers of its own. As
soon as there are more helpers than cores, OpenMP stops letting them spin between kernels, and every kernel of a small
pass pays for waking them: measured 33 context switches per layer and twice the time. A thread that hands its prompt to
the worker therefore gives its helpers back; OpenMP makes new ones when it computes again.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

__all__ = ["release_helpers"]

_PAUSE_SOFT = 1  # omp_pause_soft: release the helpers, keep everything else


def release_helpers() -> None:
    """Give back the calling thread's OpenMP helpers by `omp_pause_resource_all` (OpenMP 5.0), where that exists."""
    pause = _pause()
    if pause is not None:
        pause(_PAUSE_SOFT)


@cache
def _pause() -> Callable[[int], int] | None:
    """The function of the OpenMP library that PyTorch has loaded."""
    folder = Path(torch.__file__).parent / "lib"
    for path in (path for name in ("libgomp*", "libiomp*", "libomp*") for path in sorted(folder.glob(name))):
        try:
            return ctypes.CDLL(str(path)).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
    return None
