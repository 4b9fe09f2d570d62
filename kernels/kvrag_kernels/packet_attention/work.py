"""The work of one attention pass on a GPU, as flat arrays that kernels can read from buffers of their own.

An extent is a block of keys and values somewhere in device memory. Extents that the same *lanes* read form a *chain*; a
lane is the rows of one request. The tokens of a chain, one extent after another, are cut at equal distances into
*items*, and items at the ends of extents into *pieces*. Every item gives its rows one partial result, a *part*. A *unit*
is what one program does at a time: a block of an item's rows. An extent that several requests meet, each at its own
place, is one block of one chain: its bytes are read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from kvrag_kernels.packet_attention.table import AttentionItem, AttentionTable

__all__ = ["KVBlock", "Work", "plan_work"]

_EVERY = 1 << 30  # a bound that every token is below, and a first row that no row reaches


@dataclass(frozen=True, slots=True)
class KVBlock:
    """Where an extent is, in elements from an anchor: head `h` of layer `l` has its token `t` at
    `key + l * layer_stride + h * head_stride + t * D`.

    Attributes:
        key: the first key.
        value: the first value.
        tokens: T.
        head_stride: from head to head.
        layer_stride: from layer to layer.
    """

    key: int
    value: int
    tokens: int
    head_stride: int
    layer_stride: int


@dataclass(frozen=True, slots=True)
class Work:
    """What the kernels read. `int32` unless the name says otherwise.

    Attributes:
        counts: `[2]` units and merge groups.
        units: `[units, 2]` an item and a block of its rows.
        items: `[items + 1, 4]` first piece, first entry, number of entries, first part; the last row ends the pieces.
        entries: `[entries, 2]` rows of the pass by item, and the lane each belongs to.
        pieces: `[pieces, 2]` tokens, and the first of its lanes.
        piece_offsets: int64 `[pieces, 4]` key, value, head stride and layer stride.
        piece_scales: float32 `[pieces]` that multiply the scores.
        lanes: `[pieces x lanes of the chain, 3]` a row sees a piece if it is not before the first number, and of it the
            tokens below its own number plus the second; it turns back by the third, where 0 is not at all.
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


def plan_work(
    blocks: Sequence[KVBlock],
    table: AttentionTable,
    rows: int,
    head_dim: int,
    *,
    unit_rows: int,
    units: int,
    shortest: int = 256,
) -> Work:
    """Cut the items of a table into pieces that keep a GPU busy.

    The cut depends on nothing but the arguments: the same pass gives the same bits again.

    Args:
        blocks: one per item of the table; equal blocks are read once for all their rows.
        table: who sees what.
        rows: S of the pass.
        head_dim: D.
        unit_rows: rows that a unit takes at once.
        units: how many keep the GPU busy, counted for one KV head.
        shortest: tokens of an item of which there are several.
    """
    chains = _chains(blocks, table.items)
    ends = np.cumsum([sum(b.tokens for b in chain.blocks) * chain.blocks_of_rows(unit_rows) for chain in chains])
    length = -(-max(shortest, -(-int(ends[-1]) // units)) // 64) * 64
    cut = [_cut(chain, length, head_dim) for chain in chains]

    widths = np.asarray([chain.width for chain in chains])
    items_of = np.asarray([c.items for c in cut])
    first_entry = np.cumsum(widths) - widths
    pieces_before = np.cumsum([len(c.pieces) for c in cut]) - [len(c.pieces) for c in cut]
    lanes_before = np.cumsum([len(c.lanes) for c in cut]) - [len(c.lanes) for c in cut]
    parts_of = items_of * widths
    first_part = np.cumsum(parts_of) - parts_of
    chain_of = np.repeat(np.arange(len(chains)), items_of)
    number = np.arange(len(chain_of)) - np.repeat(np.cumsum(items_of) - items_of, items_of)
    items = np.zeros((len(chain_of) + 1, 4), np.int32)
    items[:-1, 0] = np.concatenate([c.first_pieces + p for c, p in zip(cut, pieces_before, strict=True)])
    items[:-1, 1] = first_entry[chain_of]
    items[:-1, 2] = widths[chain_of]
    items[:-1, 3] = first_part[chain_of] + number * widths[chain_of]
    items[-1, 0] = sum(len(c.pieces) for c in cut)
    for c, before in zip(cut, lanes_before, strict=True):
        c.pieces[:, 1] += before
    blocks_of = -(-items[:-1, 2] // unit_rows)
    of_item = np.repeat(np.arange(len(chain_of)), blocks_of)
    units_of = np.stack([of_item, np.arange(len(of_item)) - np.repeat(np.cumsum(blocks_of) - blocks_of, blocks_of)], 1)
    entries = np.concatenate([chain.entries() for chain in chains])
    row_runs, runs = _runs(chains, entries, rows, first_part, widths, items_of)
    return Work(
        counts=np.asarray([len(units_of), len(table.group_scale)], np.int32),
        units=units_of.astype(np.int32),
        items=items,
        entries=entries,
        pieces=np.concatenate([c.pieces for c in cut]),
        piece_offsets=np.concatenate([c.offsets for c in cut]),
        piece_scales=np.concatenate([c.scales for c in cut]),
        lanes=np.concatenate([c.lanes for c in cut]),
        row_runs=row_runs,
        runs=runs,
        parts=int(parts_of.sum()),
    )


@dataclass(slots=True)
class _Chain:
    """Extents that the same lanes read, in one merge group.

    Attributes:
        group: the merge group.
        begins: of each lane, the first row that sees any of the extents.
        ends: of each lane, one past the last row.
        blocks: the extents.
        scales: of each extent.
        readers: of each extent and lane: first row, bound, turn.
    """

    group: int
    begins: list[int]
    ends: list[int]
    blocks: list[KVBlock]
    scales: list[float]
    readers: list[list[tuple[int, int, int]]]

    @property
    def width(self) -> int:
        """Rows that read the chain."""
        return sum(self.ends) - sum(self.begins)

    def blocks_of_rows(self, unit_rows: int) -> int:
        return -(-self.width // unit_rows)

    def entries(self) -> np.ndarray:
        """`[width, 2]` row and lane."""
        spans = zip(self.begins, self.ends, strict=True)
        found = [np.stack([np.arange(a, b), np.full(b - a, lane)], 1) for lane, (a, b) in enumerate(spans)]
        return np.concatenate(found).astype(np.int32)


def _chains(blocks: Sequence[KVBlock], items: Sequence[AttentionItem]) -> list[_Chain]:
    """Equal blocks joined, blocks with the same readers in a row."""
    readers: dict[tuple[KVBlock, float, int], list[AttentionItem]] = {}
    for block, item in zip(blocks, items, strict=True):
        readers.setdefault((block, item.scale, item.group), []).append(item)
    chains: dict[tuple[int, ...], _Chain] = {}
    for (block, scale, group), of_block in readers.items():
        ends = [item.last_row for item in of_block]
        begins = [item.first_row for item in of_block]
        known = chains.get((group, *ends))
        if known is None:
            known = chains[group, *ends] = _Chain(group, begins, ends, [], [], [])
        else:
            known.begins = [min(a, b) for a, b in zip(known.begins, begins, strict=True)]
        known.blocks.append(block)
        known.scales.append(scale)
        known.readers.append([_reader(item) for item in of_block])
    return list(chains.values())


def _reader(item: AttentionItem) -> tuple[int, int, int]:
    bound = _EVERY if item.diagonal is None else item.diagonal + 1 - item.first_row
    return item.first_row, bound, 0 if item.rotation is None else item.rotation + 1


@dataclass(slots=True)
class _Cut:
    """A chain in pieces; numbers count from the chain's own first piece and lane."""

    items: int
    first_pieces: np.ndarray
    pieces: np.ndarray
    offsets: np.ndarray
    scales: np.ndarray
    lanes: np.ndarray


def _cut(chain: _Chain, length: int, head_dim: int) -> _Cut:
    """Cut a chain every `length` tokens and at the ends of its extents."""
    tokens = np.asarray([block.tokens for block in chain.blocks])
    starts = np.cumsum(tokens) - tokens
    total = int(tokens.sum())
    at = np.union1d(starts, np.arange(0, total, length))
    block = np.searchsorted(starts, at, "right") - 1
    inside = at - starts[block]
    places = np.asarray([(b.key, b.value, b.head_stride, b.layer_stride) for b in chain.blocks], np.int64)[block]
    places[:, :2] += inside[:, None] * head_dim
    lanes = np.asarray(chain.readers, np.int64)[block]  # [pieces, lanes, 3]
    bound = lanes[..., 1]
    lanes[..., 1] = np.where(bound < _EVERY, bound - inside[:, None], bound)
    count = lanes.shape[1]
    return _Cut(
        items=-(-total // length),
        first_pieces=np.searchsorted(at, np.arange(0, total, length)),
        pieces=np.stack([np.diff(at, append=total), np.arange(len(at)) * count], 1).astype(np.int32),
        offsets=places,
        scales=np.asarray(chain.scales, np.float32)[block],
        lanes=lanes.reshape(-1, 3).astype(np.int32),
    )


def _runs(
    chains: Sequence[_Chain], entries: np.ndarray, rows: int, first_part: np.ndarray, widths: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the parts of every row are, by merge group: `[rows + 1]` and `[runs, 4]`."""
    chain = np.repeat(np.arange(len(chains)), widths)
    inside = np.arange(len(entries)) - np.repeat(np.cumsum(widths) - widths, widths)
    found = np.stack(
        [first_part[chain] + inside, widths[chain], items[chain], np.asarray([c.group for c in chains])[chain]], 1
    )
    order = np.lexsort((found[:, 3], entries[:, 0]))
    row_runs = np.searchsorted(entries[order, 0], np.arange(rows + 1))
    return row_runs.astype(np.int32), found[order].astype(np.int32)
