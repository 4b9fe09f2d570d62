"""Keys and values computed for earlier prompts, for prompts that begin the same way."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["ComputedStates"]


class ComputedStates:
    """Computed text, kept under the digest of everything that stood before it in its prompt.

    What a row holds depends on all segments before it: their token ids, packet keys and positions. The digest of that
    chain is the name under which a text segment's rows are kept, and within it any common beginning of the token ids
    counts. So the template text before the first packet is computed once, and a conversation's next turn finds its
    history. Least recently used states go first.

    Args:
        capacity: bytes to keep at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self._states: OrderedDict[tuple[str, int], tuple[np.ndarray, torch.Tensor]] = OrderedDict()
        self._of_prior: dict[str, list[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._states)

    def find(self, prior: str, ids: Sequence[int]) -> torch.Tensor | None:
        """Keys and values `[L, 2, H, n, D]` of the longest known beginning of `ids` behind `prior`."""
        wanted = np.asarray(ids)
        best, length = None, 0
        for number in self._of_prior.get(prior, ()):
            common = _common(self._states[prior, number][0], wanted)
            if common > length:
                best, length = (prior, number), common
        if best is None:
            return None
        self._states.move_to_end(best)
        return self._states[best][1][:, :, :, :length]

    def keep(self, prior: str, ids: Sequence[int], kv: torch.Tensor) -> None:
        """Keep a copy-free reference to `kv` `[L, 2, H, len(ids), D]`, dropping states that it continues."""
        new = np.asarray(ids)
        size = kv.numel() * kv.element_size()
        if size > self.capacity or not len(new):
            return
        for number in list(self._of_prior.get(prior, ())):
            old = self._states[prior, number][0]
            common = _common(old, new)
            if common == len(new):
                return
            if common == len(old):
                self._drop(prior, number)
        self._count += 1
        self._states[prior, self._count] = (new, kv)
        self._of_prior.setdefault(prior, []).append(self._count)
        self.nbytes += size
        while self.nbytes > self.capacity:
            self._drop(*next(iter(self._states)))

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()
        self._of_prior.clear()
        self.nbytes = 0

    def _drop(self, prior: str, number: int) -> None:
        _, kv = self._states.pop((prior, number))
        self.nbytes -= kv.numel() * kv.element_size()
        self._of_prior[prior].remove(number)
        if not self._of_prior[prior]:
            del self._of_prior[prior]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
