"""The work of one attention pass on a GPU, as flat arrays that kernels can read from buffers of their own.

An extent is a block of keys and values somewhere in device memory. A *reader* is one extent seen by the rows of one
request. Extents with the same readers form a *chain*. The tokens of a chain, one extent after another, are cut at equal
distances into *items*, and items at the ends of extents into *pieces*. Every item gives its rows one partial result, a
*part*. A *unit* is what a program does at a time: a block of an item's rows. An extent that several requests meet, each
at its own place, is one extent of one chain: its bytes are read once.
"""

from dataclasses import dataclass, fields

import numpy as np

from kvrag_kernels.packet_attention.readers import EVERY, READER

__all__ = ["CapacityError", "Work", "plan_work"]

_TOKENS, _GROUP, _FIRST, _LAST, _BOUND = map(READER.index, ("tokens", "group", "first", "last", "bound"))


@dataclass(frozen=True, slots=True)
class Work:
    """What the kernels read; `int32` unless the name says otherwise. A lane is a reader of a chain's pieces.

    Attributes:
        counts: `[2]` units and merge groups.
        units: `[units, 2]` an item and a block of its rows.
        items: `[items + 1, 4]` first piece, first entry, number of entries, first part; the last row ends the pieces.
        entries: `[entries, 2]` rows of the pass by chain, and the lane that each belongs to.
        pieces: `[pieces, 2]` tokens, and the first of its lanes.
        piece_offsets: int64 `[pieces, 4]` key, value, head stride and layer stride.
        piece_scales: float32 `[pieces]` that multiply the scores.
        lanes: `[lanes, 3]` first row, bound and turn.
        row_runs: `[rows + 1]` first of a row's runs.
        runs: `[runs, 4]` parts of a row: the first, the distance to the next, their number, their merge group.
        parts: partial results in all.
    """

    counts: np.ndarray
    units: np.ndarray
    items: np.ndarray
    entries: np.ndarray
    pieces: np.ndarray
    piece_offsets: np.ndarray
    piece_scales: np.ndarray
    lanes: np.ndarray
    row_runs: np.ndarray
    runs: np.ndarray
    parts: int

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "parts"}


class CapacityError(ValueError):
    """The work of a pass does not fit into its buffers.

    Attributes:
        needed: rows of arrays by name.
    """

    def __init__(self, needed: dict[str, int]) -> None:
        super().__init__(f"expected work that fits, found {needed}")
        self.needed = needed


def plan_work(
    readers: np.ndarray,
    scales: np.ndarray,
    rows: int,
    head_dim: int,
    *,
    groups: int,
    unit_rows: int,
    units: int,
    shortest: int = 128,
) -> Work:
    """Cut extents into pieces that keep a GPU busy.

    The cut depends on nothing but the arguments, and not on addresses: the same pass gives the same bits again.

    Args:
        readers: `[N, 10]`, columns as in `READER`; those of one extent agree in its place, tokens, group and scale.
        scales: `[N]` that multiply the scores.
        rows: S of the pass.
        head_dim: D.
        groups: merge groups.
        unit_rows: rows that a unit takes at once.
        units: how many keep the GPU busy, counted for one KV head.
        shortest: tokens of an item of which there are several.
    """
    chains = _chains(readers, scales)
    work = sum(chain.total * -(-chain.width // unit_rows) for chain in chains)
    length = -(-max(shortest, -(-work // units)) // 64) * 64
    units_of: list[np.ndarray] = []
    items: list[np.ndarray] = []
    pieces: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    piece_scales: list[np.ndarray] = []
    lanes: list[np.ndarray] = []
    runs: list[np.ndarray] = []
    n_items = n_pieces = n_lanes = n_entries = parts = 0
    for chain in chains:
        at, block, inside = chain.cut(length)
        count = -(-chain.total // length)
        number = np.arange(count)
        item = np.empty((count, 4), np.int64)
        item[:, 0] = n_pieces + np.searchsorted(at, number * length)
        item[:, 1] = n_entries
        item[:, 2] = chain.width
        item[:, 3] = parts + number * chain.width
        blocks_of_rows = -(-chain.width // unit_rows)
        unit = np.empty((count * blocks_of_rows, 2), np.int64)
        unit[:, 0] = np.repeat(n_items + number, blocks_of_rows)
        unit[:, 1] = np.tile(np.arange(blocks_of_rows), count)
        place = chain.readers[block, 0, :4]
        place[:, :2] += inside[:, None] * head_dim
        about = chain.readers[block][:, :, [_FIRST, _BOUND, _BOUND + 1]]
        about[..., 1] -= np.where(about[..., 1] < EVERY, inside[:, None], 0)
        run = np.empty((chain.width, 4), np.int64)
        run[:, 0] = parts + np.arange(chain.width)
        run[:, 1] = chain.width
        run[:, 2] = count
        run[:, 3] = chain.readers[0, 0, _GROUP]
        units_of.append(unit)
        items.append(item)
        pieces.append(np.stack([np.diff(at, append=chain.total), n_lanes + np.arange(len(at)) * chain.lanes], 1))
        offsets.append(place)
        piece_scales.append(chain.scales[block])
        lanes.append(about.reshape(-1, 3))
        runs.append(run)
        n_items += count
        n_pieces += len(at)
        n_lanes += len(at) * chain.lanes
        n_entries += chain.width
        parts += count * chain.width
    entries = np.concatenate([chain.entries() for chain in chains])
    of_rows = np.concatenate(runs)
    order = np.lexsort((of_rows[:, 3], entries[:, 0]))
    end = np.asarray([[n_pieces, 0, 0, 0]])
    return Work(
        counts=np.asarray([sum(map(len, units_of)), groups], np.int32),
        units=np.concatenate(units_of).astype(np.int32),
        items=np.concatenate([*items, end]).astype(np.int32),
        entries=entries.astype(np.int32),
        pieces=np.concatenate(pieces).astype(np.int32),
        piece_offsets=np.concatenate(offsets),
        piece_scales=np.concatenate(piece_scales),
        lanes=np.concatenate(lanes).astype(np.int32),
        row_runs=np.searchsorted(entries[order, 0], np.arange(rows + 1)).astype(np.int32),
        runs=of_rows[order].astype(np.int32),
        parts=parts,
    )


@dataclass(slots=True)
class _Chain:
    """Extents with the same readers.

    Attributes:
        readers: `[extents, lanes, 10]`.
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
    def of(cls, readers: np.ndarray, scales: np.ndarray) -> "_Chain":
        """The chain of readers `[extents, lanes, 10]` and scales `[extents]`."""
        begins = readers[:, :, _FIRST].min(0)
        width = int((readers[0, :, _LAST] - begins).sum())
        return cls(readers, scales, begins, width, int(readers[:, 0, _TOKENS].sum()))

    @property
    def lanes(self) -> int:
        """Readers of each extent."""
        return self.readers.shape[1]

    def entries(self) -> np.ndarray:
        """`[width, 2]` row and lane."""
        counts = self.readers[0, :, _LAST] - self.begins
        before = np.cumsum(counts) - counts
        lane = np.repeat(np.arange(self.lanes), counts)
        return np.stack([np.arange(self.width) - before[lane] + self.begins[lane], lane], 1)

    def cut(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where pieces begin: among the chain's tokens, the extent, and the token of the extent."""
        tokens = self.readers[:, 0, _TOKENS]
        starts = np.cumsum(tokens) - tokens
        at = np.union1d(starts, np.arange(0, self.total, length))
        block = np.searchsorted(starts, at, "right") - 1
        return at, block, at - starts[block]


def _chains(readers: np.ndarray, scales: np.ndarray) -> list[_Chain]:
    """Readers of one extent brought together, then extents with the same readers."""
    alike = not np.any(readers[:, [_GROUP, _LAST]] != readers[0, [_GROUP, _LAST]])
    if alike and len(set(readers[:, 0].tolist())) == len(readers):
        return [_Chain.of(readers[:, None], scales)]  # a single request: the shortest way, for it is waited for
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
        found.append(_Chain.of(of_chain, scales[mine][:: of_chain.shape[1]]))
    return found


def _alike(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number equal rows alike, in the order of their first appearance; the second array says where that is."""
    order = np.lexsort(rows.T)
    new = np.flatnonzero(np.any(rows[order[1:]] != rows[order[:-1]], axis=1)) + 1
    first = order[np.concatenate(([0], new))]  # the sort is stable
    numbers = np.empty(len(rows), np.int64)
    numbers[order] = np.repeat(np.argsort(np.argsort(first)), np.diff(np.concatenate(([0], new, [len(rows)]))))
    return numbers, np.sort(first)
