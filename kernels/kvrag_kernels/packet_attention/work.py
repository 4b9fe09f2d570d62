"""The work of one attention pass on a GPU, as flat arrays that kernels can read from buffers of their own.

An extent is a block of keys and values somewhere in device memory. A *reader* is one extent seen by the rows of one
request. Extents with the same readers form a *chain*. The tokens of a chain, one extent after another, are cut at equal
distances into *items*, and items at the ends of extents into *pieces*. Every item gives its rows one partial result, a
*part*. A *unit* is what a program does at a time: a block of an item's rows. An extent that several requests meet, each
at its own place, is one extent of one chain: its bytes are read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from kvrag_kernels.packet_attention.chains import Chain, chains_of
from kvrag_kernels.packet_attention.readers import EVERY, READER

__all__ = ["CapacityError", "Work", "plan_work"]

_COLUMNS = ("scales", "tokens", "group", "first", "last", "bound", "turn")
_SCALES, _TOKENS, _GROUP, _FIRST, _LAST, _BOUND, _TURN = map(READER.index, _COLUMNS)


@dataclass(frozen=True, slots=True)
class Work:
    """What the kernels read; `int32` unless the name says otherwise. A lane is a reader of a chain's pieces.

    Attributes:
        counts: `[2]` units and merge groups.
        units: `[units, 2]` an item and a block of its rows.
        items: `[items + 1, 4]` first piece, first entry, number of entries, first part; the last row ends the pieces.
        entries: `[entries, 2]` rows of the pass by chain, and the lane that each belongs to.
        pieces: `[pieces, 2]` tokens, and the first of its lanes.
        piece_offsets: int64 `[pieces, 6]` key, value, head stride, layer stride, scales and form.
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
        return {name: getattr(self, name) for name in _ARRAYS}

    def growing(self) -> tuple[np.ndarray, np.ndarray]:
        """In a pass of single rows, the pieces that the next keys go to, and the lanes whose bounds move with them."""
        lane = self.pieces[:, 1]
        own = np.flatnonzero(self.lanes[lane, 1] < EVERY)
        first_row, bound, _ = self.lanes[lane[own]].T
        return own[first_row + bound == self.pieces[own, 0]], lane[own]


_ARRAYS = tuple(field.name for field in fields(Work) if field.name != "parts")


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
        readers: `[N, 12]`, columns as in `READER`; those of one extent agree in its place, tokens, group and scale.
        scales: `[N]` that multiply the scores.
        rows: S of the pass.
        head_dim: D.
        groups: merge groups.
        unit_rows: rows that a unit takes at once.
        units: how many keep the GPU busy, counted for one KV head.
        shortest: tokens of an item of which there are several.
    """
    chains = chains_of(readers, scales)
    work = sum(chain.total * -(-chain.width // unit_rows) for chain in chains)
    length = -(-max(shortest, -(-work // units)) // 64) * 64
    found = [_of_chain(chain, length, rows, head_dim, groups, unit_rows) for chain in chains]
    return found[0] if len(found) == chains[0].lanes == 1 else _join(found, rows)


def _of_chain(chain: Chain, length: int, rows: int, head_dim: int, groups: int, unit_rows: int) -> Work:
    """A chain's work, as if there were no other; with several lanes, runs are in the order of the lanes."""
    at, block, inside = chain.cut(length)
    count, blocks = chain.items(length), -(-chain.width // unit_rows)
    number, entry = np.arange(count), np.arange(chain.width)
    units = np.empty((count, blocks, 2), np.int32)
    units[:, :, 0] = number[:, None]
    units[:, :, 1] = np.arange(blocks)
    items = np.zeros((count + 1, 4), np.int32)
    items[:-1, 0] = at.searchsorted(number * length)
    items[:-1, 2] = chain.width
    items[:-1, 3] = number * chain.width
    items[-1, 0] = len(at)
    entries = chain.entries(entry)
    pieces = np.empty((len(at), 2), np.int32)
    pieces[:-1, 0] = at[1:] - at[:-1]
    pieces[-1, 0] = chain.total - at[-1]
    pieces[:, 1] = np.arange(len(at)) * chain.lanes
    readers = chain.readers[block]
    offsets = readers[:, 0, :_TOKENS]
    offsets[:, :2] += inside[:, None] * head_dim
    offsets[:, _SCALES] += inside
    lanes = np.empty((len(at), chain.lanes, 3), np.int32)
    lanes[:, :, 0] = readers[:, :, _FIRST]
    bound = readers[:, :, _BOUND]
    lanes[:, :, 1] = bound - np.where(bound < EVERY, inside[:, None], 0)
    lanes[:, :, 2] = readers[:, :, _TURN]
    runs = np.empty((chain.width, 4), np.int32)
    runs[:, 0] = entry
    runs[:, 1:] = chain.width, count, chain.readers[0, 0, _GROUP]
    return Work(
        counts=np.asarray([count * blocks, groups], np.int32),
        units=units.reshape(-1, 2),
        items=items,
        entries=entries,
        pieces=pieces,
        piece_offsets=offsets,
        piece_scales=chain.scales[block],
        lanes=lanes.reshape(-1, 3),
        row_runs=_row_runs(entries[:, 0], rows),
        runs=runs,
        parts=count * chain.width,
    )


def _join(works: Sequence[Work], rows: int) -> Work:
    """The works of chains, one after another, with the runs of all in the order of their rows."""
    items = pieces = lanes = n_entries = parts = 0
    for work in works:
        work.units[:, 0] += items
        work.items[:] += np.asarray((pieces, n_entries, 0, parts), np.int32)
        work.pieces[:, 1] += lanes
        work.runs[:, 0] += parts
        items += len(work.items) - 1
        pieces += len(work.pieces)
        lanes += len(work.lanes)
        n_entries += len(work.entries)
        parts += work.parts
    entries = np.concatenate([work.entries for work in works])
    runs = np.concatenate([work.runs for work in works])
    order = np.lexsort((runs[:, 3], entries[:, 0]))
    end = np.asarray([[pieces, 0, 0, 0]], np.int32)
    return Work(
        counts=np.asarray([sum(len(work.units) for work in works), works[0].counts[1]], np.int32),
        units=np.concatenate([work.units for work in works]),
        items=np.concatenate([*(work.items[:-1] for work in works), end]),
        entries=entries,
        pieces=np.concatenate([work.pieces for work in works]),
        piece_offsets=np.concatenate([work.piece_offsets for work in works]),
        piece_scales=np.concatenate([work.piece_scales for work in works]),
        lanes=np.concatenate([work.lanes for work in works]),
        row_runs=_row_runs(entries[order, 0], rows),
        runs=runs[order],
        parts=parts,
    )


def _row_runs(of: np.ndarray, rows: int) -> np.ndarray:
    """`[rows + 1]` where the runs of each row begin, given the rows of all runs in ascending order."""
    return of.searchsorted(np.arange(rows + 1, dtype=np.int32)).astype(np.int32)
