"""How fast packets are loaded and computed: given, or measured as they come."""

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LiveRates", "Rates"]

_KEPT = 32  # passes that the fit is made of
_FADING = 0.8  # weight of a pass for each that came after it: four slow ones in a row are the new speed
_LEAST = 1e-9  # seconds of a row where rows cost nothing
_NEW = 0.3  # weight of the latest load
_FORGIVEN = 60.0  # seconds after which a bandwidth that nobody measured again counts twice as high


class Rates(BaseModel):
    """What loading and computing take.

    Attributes:
        bandwidth: of the store, in bytes a second.
        latency: of a packet before its first byte, in seconds.
        pass_seconds: of a pass through the model, however few rows it has.
        token_seconds: of every row.
        context: tokens in front of a row that double its time, by the model's shape; 0 if they cost nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidth: float = Field(default=1e9, gt=0)
    latency: float = Field(default=1e-3, ge=0)
    pass_seconds: float = Field(default=0.0, ge=0)
    token_seconds: float = Field(default=1e-3, gt=0)
    context: float = Field(default=0.0, ge=0)

    def load_s(self, nbytes: float) -> float:
        """Seconds to load a packet of so many bytes."""
        return self.latency + nbytes / self.bandwidth

    def compute_s(self, first: int, last: int) -> float:
        """Seconds to compute the tokens `first` to `last` of a packet in one pass."""
        return self.pass_seconds + self.token_seconds * self.work(first, last)

    def work(self, first: int, last: int) -> float:
        """The same as a number of tokens without context."""
        tokens = last - first
        return tokens * (1 + (first + tokens / 2) / self.context) if self.context else float(tokens)


class LiveRates:
    """Rates that follow what is measured; a bandwidth counts for more, the longer nobody has measured it. Thread-safe.

    Args:
        first: until something is measured.
        clock: seconds.
    """

    def __init__(self, first: Rates, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = first
        self._clock = clock
        self._passes: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._loaded_at: float | None = None
        self._opened = False
        self._lock = threading.Lock()

    def now(self) -> Rates:
        """The best estimate."""
        with self._lock:
            if self._loaded_at is None:
                return self._rates
            forgiven = 2.0 ** min(60.0, (self._clock() - self._loaded_at) / _FORGIVEN)
            old = self._rates
            return old.model_copy(update={"bandwidth": old.bandwidth * forgiven, "latency": old.latency / forgiven})

    def opened(self, seconds: float) -> None:
        """A packet's file was opened."""
        with self._lock:
            latency = seconds if not self._opened else _mix(self._rates.latency, seconds)
            self._opened = True
            self._rates = self._rates.model_copy(update={"latency": latency})

    def loaded(self, nbytes: int, seconds: float) -> None:
        """Bytes were loaded."""
        if nbytes <= 0 or seconds <= 0:
            return
        with self._lock:
            per_byte = seconds / nbytes  # times add up, speeds do not
            if self._loaded_at is not None:
                per_byte = _mix(1 / self._rates.bandwidth, per_byte)
            self._loaded_at = self._clock()
            self._rates = self._rates.model_copy(update={"bandwidth": 1 / per_byte})

    def computed(self, work: float, seconds: float) -> None:
        """A pass took so long; `work` is the sum of `Rates.work` over its lanes."""
        if work <= 0 or seconds <= 0:
            return
        with self._lock:
            self._passes.append((work, seconds))
            fixed, per_token = _fit(*np.array(self._passes).T)
            self._rates = self._rates.model_copy(update={"pass_seconds": fixed, "token_seconds": per_token})


def _mix(old: float, new: float) -> float:
    return (1 - _NEW) * old + _NEW * new


def _fit(work: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """`a` and `b` of `seconds = a + b * work` with the least absolute deviation, neither below zero.

    The latest passes count most. A pass that compiled kernels or waited for others' work does not bend the line, which
    goes through two of the passes, or through one of them and nothing fixed, or nothing but fixed.
    """
    weights = _FADING ** np.arange(len(work))[::-1]
    one, other = np.triu_indices(len(work), 1)
    apart = np.abs(work[one] - work[other]) > 0.05 * work.max()
    one, other = one[apart], other[apart]
    per_token = (seconds[one] - seconds[other]) / (work[one] - work[other])
    fixed = seconds[one] - per_token * work[one]
    flat = np.full(len(work) if len(one) else 0, _LEAST)
    per_token = np.concatenate([seconds / work, per_token, flat])
    fixed = np.concatenate([np.zeros(len(work)), fixed, seconds[: len(flat)]])
    allowed = (per_token > 0) & (fixed >= 0)
    per_token, fixed = per_token[allowed], fixed[allowed]
    best = np.argmin(np.abs(seconds - fixed[:, None] - per_token[:, None] * work) @ weights)
    return float(fixed[best]), float(per_token[best])
