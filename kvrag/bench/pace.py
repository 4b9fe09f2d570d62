"""Files read as slowly as from a store of a known bandwidth."""

import os
import threading
import time

__all__ = ["PacedReader"]

_PIECE = 256 << 10  # bytes between two looks at the clock, or what takes a millisecond
_AHEAD = 0.002  # seconds that a reader may be ahead of its pace: shorter rests take longer than they should


class PacedReader:
    """Reads files no faster than so many bytes a second, for all threads together.

    Args:
        bandwidth: bytes a second; None reads as fast as it can.
    """

    def __init__(self, bandwidth: float | None) -> None:
        self._bandwidth, self._due = bandwidth, 0.0
        self._lock = threading.Lock()
        self._piece = max(_PIECE, int(1e-3 * (bandwidth or 0.0)))

    def __call__(self, fd: int, data: memoryview, offset: int) -> None:
        """Fill `data` from `offset` of a file."""
        while data:
            count = os.preadv(fd, [data[: self._piece]], offset)
            if not count:
                raise OSError("expected a file that stays as it is, found a shorter one")
            data, offset = data[count:], offset + count
            if self._bandwidth:
                with self._lock:
                    now = time.perf_counter()
                    due = self._due = max(self._due, now - _AHEAD) + count / self._bandwidth
                if due > now + _AHEAD:
                    time.sleep(due - now)
