"""Host memory for packets: blocks that are used again once nobody holds what was in them.

The system gives memory page by page, each of them zeroed first, which takes as long as copying a packet out of the page
cache. Memory that a GPU copies from is slower still to get.
"""

import mmap
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["Allocator", "BlockArena", "pinned"]

_PAGE = 4096
_HUGE_PAGE = 2 << 20
_SMALLEST = 256 << 10  # bytes; what is smaller comes from the C library, which keeps such memory at hand
_TOLERATED = 1.25  # times the bytes asked for that an idle block may have

Allocator = Callable[[int], torch.Tensor]
"""Gives `[nbytes]` uint8, contents undefined; it belongs to whoever holds the tensor or a view of it."""


class BlockArena:
    """An `Allocator` that keeps blocks for the next packet.

    A tensor's memory comes back by itself when the last tensor or array over it is gone, so nobody has to return
    anything, and a packet stays what it is for as long as somebody holds it. Thread-safe.

    Args:
        idle_bytes: of blocks to keep for later; the ones unused for longest are given back to the system.
    """

    def __init__(self, idle_bytes: int = 256 << 20) -> None:
        self.idle_bytes = idle_bytes
        self._idle: list[np.ndarray] = []  # unused for longest first
        self._lock = threading.RLock()  # garbage collection may end a tensor's life while its thread is in here

    def __call__(self, nbytes: int) -> torch.Tensor:
        """`[nbytes]` uint8, contents undefined."""
        if nbytes < _SMALLEST:
            return torch.empty(nbytes, dtype=torch.uint8)
        block = self._take(nbytes)
        lent = block[:nbytes]  # an object that lives exactly as long as the storage over it
        weakref.finalize(lent, self._give_back, block).atexit = False
        return torch.from_numpy(lent)

    @property
    def nbytes(self) -> int:
        """Bytes of blocks that nobody uses."""
        with self._lock:
            return sum(block.nbytes for block in self._idle)

    def _take(self, nbytes: int) -> np.ndarray:
        with self._lock:
            fitting = [n for n, block in enumerate(self._idle) if nbytes <= block.nbytes <= nbytes * _TOLERATED]
            if fitting:
                return self._idle.pop(min(fitting, key=lambda n: self._idle[n].nbytes))
        return _new_block(nbytes)

    def _give_back(self, block: np.ndarray) -> None:
        with self._lock:
            self._idle.append(block)
            while self.nbytes > self.idle_bytes:
                self._idle.pop(0)


def pinned(nbytes: int) -> torch.Tensor:
    """`[nbytes]` uint8 that a GPU copies from by itself.

    PyTorch keeps such blocks for later, and uses none again before the copies from it have ended.

    Raises:
        RuntimeError: there is no GPU.
    """
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def _new_block(nbytes: int) -> np.ndarray:
    """Pages of their own, huge ones where that is possible: a fault for each of 4 KiB halves the speed."""
    memory: Any = mmap.mmap(-1, -(-nbytes // _PAGE) * _PAGE)
    if nbytes >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)
