"""Readers of keys and values, brought together by what they read."""

from dataclasses import dataclass

import numpy as np

from kvrag_kernels.packet_attention.readers import READER

__all__ = ["Chain", "chains_of"]

_TOKENS, _GROUP, _FIRST, _LAST = map(READER.index, ("tokens", "group", "first", "last"))
_REST = 64  # tokens that take a program less time than to begin


@dataclass(slots=True)
class Chain:
    """Extents with the same readers.

    Attributes:
        readers: `[extents, lanes, 12]`.
        scales: `[extents]`.
        begins: `[lanes]` the first row that sees any of the extents.
        width: rows of all lanes.
        total: tokens of all extents.
    """

    readers: np.ndarray
    scales: np.ndarray
    begins: np.ndarray
    width: int
    total: int

    @classmethod
    def of(cls, readers: np.ndarray, scales: np.ndarray) -> "Chain":
        """The chain of readers `[extents, lanes, 12]` and scales `[extents]`."""
        begins = readers[:, :, _FIRST].min(0)
        width = int((readers[0, :, _LAST] - begins).sum())
        return cls(readers, scales, begins, width, int(readers[:, 0, _TOKENS].sum()))

    @property
    def lanes(self) -> int:
        """Readers of each extent."""
        return self.readers.shape[1]

    def entries(self, number: np.ndarray) -> np.ndarray:
        """`[width, 2]` row and lane of entries `number` `[width]`."""
        found = np.empty((self.width, 2), np.int32)
        if self.lanes == 1:
            found[:, 0], found[:, 1] = number + self.begins, 0
            return found
        counts = self.readers[0, :, _LAST] - self.begins
        before = np.cumsum(counts) - counts
        lane = np.repeat(np.arange(self.lanes), counts)
        found[:, 0], found[:, 1] = number - before[lane] + self.begins[lane], lane
        return found

    def items(self, length: int) -> int:
        """How many items of `length` tokens; a short rest goes to the last of them instead of a program of its own."""
        return max(1, -(-(self.total - max(_REST, length // 8)) // length))

    def cut(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where pieces begin: among the chain's tokens, the extent, and the token of the extent."""
        ends = self.readers[:, 0, _TOKENS].cumsum()
        starts = ends - self.readers[:, 0, _TOKENS]
        at = np.concatenate((starts, np.arange(0, self.items(length) * length, length)))
        at.sort()
        at = at[np.concatenate(([True], at[1:] != at[:-1]))]
        block = starts.searchsorted(at, "right") - 1
        return at, block, at - starts[block]


def chains_of(readers: np.ndarray, scales: np.ndarray) -> list[Chain]:
    """Readers of one extent brought together, then extents with the same readers."""
    alike = (readers[:, _LAST] == readers[0, _LAST]).all() and (readers[:, _GROUP] == readers[0, _GROUP]).all()
    if alike and len(set(readers[:, 0].tolist())) == len(readers):
        return [Chain.of(readers[:, None], scales)]  # a single request: the shortest way, for it is waited for
    known = np.column_stack([readers[:, : _GROUP + 1], scales.view(np.int32)])
    extent, first = _alike(known)
    ends, lane = np.unique(readers[:, _LAST], return_inverse=True)
    members = np.zeros((len(first), len(ends) + 1), np.int64)
    np.add.at(members, (extent, lane), 1)  # a prompt may hold a packet twice
    members[:, -1] = readers[first, _GROUP]
    chain, _ = _alike(members)
    order = np.lexsort((readers[:, _LAST], extent, chain[extent]))
    borders = np.searchsorted(chain[extent][order], np.arange(1, chain.max() + 1))
    found = []
    for mine in np.split(order, borders):
        of_chain = readers[mine].reshape(len(np.unique(extent[mine])), -1, len(READER))
        found.append(Chain.of(of_chain, scales[mine][:: of_chain.shape[1]]))
    return found


def _alike(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number equal rows alike, in the order of their first appearance; the second array says where that is."""
    order = np.lexsort(rows.T)
    new = np.flatnonzero(np.any(rows[order[1:]] != rows[order[:-1]], axis=1)) + 1
    first = order[np.concatenate(([0], new))]  # the sort is stable
    numbers = np.empty(len(rows), np.int64)
    numbers[order] = np.repeat(np.argsort(np.argsort(first)), np.diff(np.concatenate(([0], new, [len(rows)]))))
    return numbers, np.sort(first)
