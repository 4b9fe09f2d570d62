"""A pass whose attention runs on a GPU, by kernels that find their work in device memory."""

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from kvrag_kernels.packet_attention import AttentionTable
from kvrag_kernels.packet_attention.device import DeviceWork
from kvrag_kernels.packet_attention.readers import ALIGNED, EVERY, READER, forms_of
from kvrag_kernels.packet_attention.work import CapacityError

from kvrag.attach.arrivals import Arrivals
from kvrag.attach.attention import LanePass
from kvrag.attach.lane import Geometry, Lane
from kvrag.rope import Rope

__all__ = ["SIZES", "DevicePass", "DeviceWorks"]

SIZES = (1, 16, 32, 64, 128, 256, 512)
"""Rows of passes that are recorded."""

_SCALES, _FORM = READER.index("scales"), READER.index("form")
_STEPS = 64  # single rows until the work is divided anew, since the requests' own keys grow


class DeviceWorks:
    """Work buffers of one model, by the number of rows and the forms of extents they are for.

    Args:
        geometry: of the model.
        rope: of the model.
        dtype: of keys and values.
        device: of the model.

    Attributes:
        geometry: as given.
        arrivals: what passes wait for, layer by layer.
        anchor: what the places of keys and values are counted from.
    """

    def __init__(self, geometry: Geometry, rope: Rope, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry = geometry
        self.arrivals = Arrivals(geometry.layers, device)
        self.anchor = torch.zeros(2 * geometry.head_dim, dtype=dtype, device=device)
        self._half = len(rope.inv_freq)
        self._works: dict[tuple[int, frozenset[str]], DeviceWork] = {}
        self._step: _Step | None = None

    @classmethod
    def of(cls, geometry: Geometry, rope: Rope, dtype: torch.dtype, device: torch.device) -> "DeviceWorks | None":
        """Buffers for a model, or None where its heads have a size or number that the kernels do not take."""
        g = geometry
        taken = g.head_dim % ALIGNED == 0 and g.head_dim >= 32 and g.heads // g.kv_heads <= 32
        return cls(geometry, rope, dtype, device) if taken else None

    def filled(
        self, rows: int, readers: np.ndarray, scales: np.ndarray, table: AttentionTable, places: np.ndarray
    ) -> DeviceWork:
        """Buffers for at least `rows` rows that hold this work, larger ones if it does not fit."""
        self._step = None
        size = next((size for size in SIZES if rows <= size), 1 << (rows - 1).bit_length())
        padded = np.zeros((size, 4), np.int64)
        padded[:, 1] = self.geometry.head_dim  # rows that fill a recorded pass up write into the anchor
        padded[: len(places)] = places
        forms = forms_of(readers)
        work = self._works.get((size, forms)) or self._make(size, forms, {})
        try:
            work.fill(readers, scales, table, padded)
        except CapacityError as error:
            needed = {name: max(count, work.capacity[name]) for name, count in error.needed.items()}
            work = self._make(size, forms, needed)
            work.fill(readers, scales, table, padded)
        return work

    def began(self, lanes: Sequence[Lane], work: DeviceWork) -> None:
        """Remember a pass of one row a lane, which the next one may continue."""
        self._step = _Step(lanes, work, self.arrivals.moves)

    def advanced(self, lanes: Sequence[Lane]) -> DeviceWork | None:
        """The buffers for one more row of the same lanes, which a few additions make; None if all is to be planned."""
        step = self._step
        if step is None or not step.leads_to(lanes, self.arrivals.moves):
            return None
        step.work.advance(len(lanes))
        return step.work

    def _make(self, rows: int, forms: frozenset[str], capacity: dict[str, int]) -> DeviceWork:
        g = self.geometry
        group = g.heads // g.kv_heads
        keeps = 1 < rows <= SIZES[-1]  # single steps ask nothing, larger passes keep their own
        asking = g.asking if keeps else range(0)
        options = {"capacity": capacity, "forms": forms, "before": self.arrivals.wait, "asking": asking}
        work = DeviceWork(self.anchor, rows, g.kv_heads, group, g.head_dim, self._half, **options)
        self._works[rows, forms] = work
        return work


class _Step:
    """A pass of one row a lane, and how often it has been continued."""

    def __init__(self, lanes: Sequence[Lane], work: DeviceWork, moves: int) -> None:
        self.work = work
        self._lanes = [weakref.ref(lane) for lane in lanes]
        self._known = self._state(lanes, moves)
        self._steps = 0

    def leads_to(self, lanes: Sequence[Lane], moves: int) -> bool:
        """Whether a pass of one row each of these lanes is the next step."""
        self._steps += 1
        return (
            self._steps < _STEPS
            and len(lanes) == len(self._lanes)
            and all(known() is lane for known, lane in zip(self._lanes, lanes, strict=True))
            and self._state(lanes, moves, self._steps) == self._known
        )

    @staticmethod
    def _state(lanes: Sequence[Lane], moves: int, steps: int = 0) -> tuple[int, list[tuple[object, ...]]]:
        return moves, [(lane.length - steps, len(lane.extents), lane.place(0)) for lane in lanes]


class DevicePass(LanePass):
    """One forward pass over rows of several lanes; takes the place of `AttentionPass`.

    Args:
        lanes: the lanes, in the order of their rows in the pass.
        rows: number of rows each lane computes now.
        rope: of the model.
        works: to fill.
        asking: whether its queries are wanted.

    Attributes:
        rows: of all lanes.
        arrivals: what the pass waits for.
        work: what its kernels read.
    """

    def __init__(
        self, lanes: Sequence[Lane], rows: Sequence[int], rope: Rope, works: DeviceWorks, *, asking: bool = False
    ) -> None:
        super().__init__(lanes, rows)
        self.arrivals = works.arrivals
        self.rows = sum(rows)
        self._asking = works.geometry.asking if asking else range(0)
        self._queries: list[torch.Tensor] = []
        single = self.rows == len(lanes) and not asking
        work = works.advanced(lanes) if single else None
        self.work = work or self._planned(rope, works)
        if single and work is None:
            works.began(lanes, self.work)

    def _planned(self, rope: Rope, works: DeviceWorks) -> DeviceWork:
        """Buffers with the work of this pass."""
        turns: dict[int, int] = {0: 0}
        groups = {1.0: 0}  # by merge scale
        scales: list[float] = []
        numbers: list[int] = []
        own: list[int] = []
        first = 0
        for lane, count in self._lanes:
            last, before = first + count, first - lane.length
            for extent in lane.extents:
                seen_from = before + extent.seen_from
                if seen_from < last:
                    turn = turns.setdefault(extent.turn, len(turns))
                    group = groups.setdefault(extent.merge_scale, len(groups))
                    numbers += (*extent.place, group, seen_from if seen_from > first else first, last, EVERY, turn)
                    scales.append(extent.score_scale)
            numbers += (*lane.place(lane.length + count), 0, first, last, lane.length + 1 - first, 0)
            scales.append(1.0)
            own.append(len(numbers) // len(READER) - 1)
            first = last
        readers = np.fromiter(numbers, np.int64, len(numbers)).reshape(-1, len(READER))
        _count_from(works.anchor, readers)
        places = self._places(readers[own], works.geometry.head_dim)
        table = AttentionTable((), *rope.angles(list(turns)[1:]), tuple(groups), (0.0,) * len(groups))
        return works.filled(
            max(first, 2 if self._asking else 1), readers, np.asarray(scales, np.float32), table, places
        )

    def _places(self, own: np.ndarray, head_dim: int) -> np.ndarray:
        """`[rows, 4]` where the lanes' next rows go, given the readers `[lanes, 10]` of their own blocks."""
        tokens = [np.arange(lane.length, lane.length + count) for lane, count in self._lanes]
        places = np.repeat(own[:, :4], [count for _, count in self._lanes], axis=0)
        places[:, :2] += np.concatenate(tokens)[:, None] * head_dim
        return places

    @classmethod
    def over(cls, work: DeviceWork) -> "DevicePass":
        """A pass over whatever is in the buffers when it is done."""
        made = cls.__new__(cls)
        LanePass.__init__(made, [], [])
        made.rows, made.work, made._asking = work.rows, work, range(0)
        return made

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Write the rows' keys and values `[H, S, D]` into their lanes and attend: `[S, HQ, D]` from `[HQ, S, D]`."""
        self.layers_seen += 1
        if layer in self._asking and not len(self.work.queries):
            self._queries.append(query)
        return self.work.pass_layer(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), layer, scaling)

    def asked(self) -> tuple[torch.Tensor, float]:
        """As `LanePass.asked`, until the next pass."""
        kept = torch.stack(self._queries) if self._queries else self.work.queries[:, : self.rows].transpose(1, 2)
        return kept, self.work.scaling


def _count_from(anchor: torch.Tensor, readers: np.ndarray) -> None:
    """Turn addresses and distances from keys into elements from the anchor, those of scales too."""
    begin, value = readers[:, 0], readers[:, 1]
    begin -= anchor.data_ptr()
    in_bytes = np.flatnonzero(readers[:, _FORM])
    readers[in_bytes, _SCALES] = (readers[in_bytes, _SCALES] + begin[in_bytes]) // 2
    begin[in_bytes] *= anchor.itemsize
    begin //= anchor.itemsize
    value += begin
    if (readers[:, :4] % ALIGNED).any():
        raise ValueError(f"expected blocks at multiples of {ALIGNED} numbers, found some at {begin.tolist()}")
