"""Packet attention on a GPU: the work of a pass in fixed buffers, and the launches that read it."""

import itertools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch

from kvrag_kernels.packet_attention.operator import attend_to_work, register
from kvrag_kernels.packet_attention.readers import forms_of
from kvrag_kernels.packet_attention.table import AttentionTable
from kvrag_kernels.packet_attention.tiles import count_multiprocessors, is_hopper, padded, tile_shape
from kvrag_kernels.packet_attention.triton import (
    INTERPRETED,
    LOG2_E,
    attend_units,
    merge_parts,
    write_rows,
)
from kvrag_kernels.packet_attention.work import CapacityError, plan_work

__all__ = ["DeviceWork"]

_COLUMNS = {"units": 2, "items": 4, "entries": 2, "pieces": 2, "piece_offsets": 6, "lanes": 3, "runs": 4}
_KINDS = {"piece_offsets": np.int64, "places": np.int64} | dict.fromkeys(
    ("piece_scales", "cos", "sin", "group_scale", "group_bias"), np.float32
)
_OF_NO_TURN = {"cos": 1, "sin": 0}  # what stands in front of the angles
_numbers = itertools.count()
_PARTS = 4096  # partial results that there is room for, unless more rows need as many


class DeviceWork:
    """The work of one pass after another, in buffers that stay where they are, as CUDA graphs want it.

    Args:
        anchor: any tensor of the keys' dtype and device; addresses count from it.
        rows: S, at most.
        heads: H.
        group: query heads to a KV head, G.
        head_dim: D.
        half: E / 2 of the rotary embedding.
        capacity: rows of arrays by name, at least; what is not named gets a size that suffices for most.
        multiprocessors: to keep busy; 0 asks the device.
        forms: that extents may have besides raw; every one makes kernels larger.
        before: called with a layer's number before its keys and values are read.
        asking: layers whose queries are kept.

    Attributes:
        anchor: as given.
        rows: as given.
        forms: as given.
        queries: `[l, rows, HQ, D]` of the last pass in the layers that ask.
        scaling: of its scores.
        number: of these buffers in this process.
        arrays: what the kernels read, by name.
    """

    def __init__(
        self,
        anchor: torch.Tensor,
        rows: int,
        heads: int,
        group: int,
        head_dim: int,
        half: int,
        *,
        capacity: dict[str, int] | None = None,
        multiprocessors: int = 0,
        forms: Collection[str] = (),
        before: Callable[[int], object] = lambda layer: None,
        asking: range = range(0),
    ) -> None:
        self.anchor = anchor
        self.rows = rows
        self.forms = frozenset(forms)
        self.number = next(_numbers)
        register(self.number, self)
        self._before = before
        self._asking = asking
        self.scaling = 1.0
        self._heads, self._group, self._head_dim, self._half = heads, group, head_dim, half
        device = anchor.device
        self._early = is_hopper(device)
        self._tile = tile_shape(
            rows, group, head_dim, hopper=self._early, itemsize=anchor.itemsize, encoded=bool(self.forms)
        )
        self._programs = self._tile.programs * (multiprocessors or count_multiprocessors(device))
        sizes = {
            "counts": 2,
            **dict.fromkeys(("units", "items"), 256),
            "entries": 4 * rows,
            **dict.fromkeys(("pieces", "piece_offsets", "piece_scales"), 512),
            "lanes": 1024,
            "row_runs": rows + 1,
            "runs": 4 * rows,
            **dict.fromkeys(("cos", "sin"), 128),
            **dict.fromkeys(("group_scale", "group_bias"), 16),
            "places": rows,
            "parts": rows * max(1, min(64, _PARTS // rows)),
        }
        for name, wanted in (capacity or {}).items():
            while sizes[name] < wanted:
                sizes[name] *= 2
        self.capacity = sizes
        columns = _COLUMNS | {"cos": half, "sin": half, "places": 4}
        self._offsets: dict[str, tuple[int, int]] = {}
        end = 0
        for name, count in sizes.items():
            if name != "parts":
                size = count * columns.get(name, 1) * np.dtype(_KINDS.get(name, np.int32)).itemsize
                self._offsets[name] = (end, size)
                end += -(-size // 16) * 16
        parts = sizes["parts"] * heads * group
        with torch.inference_mode(False):  # whoever comes first, everybody may write to them
            self._staged = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
            self._on_device = torch.zeros(end, dtype=torch.uint8, device=device)
            self._partial = torch.empty(parts * head_dim, dtype=torch.float32, device=device)
            self._partial_lse = torch.empty(parts, dtype=torch.float32, device=device)
            self.queries = anchor.new_zeros(len(asking), rows, heads * group, head_dim)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self._growing = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.arrays = {name: self._view(self._on_device, name) for name in self._offsets}
        self._to_fill = {name: self._view(self._staged, name).numpy() for name in self._offsets}
        for name, width in columns.items():
            self._to_fill[name] = self._to_fill[name].reshape(-1, width)
        for name, of_no_turn in _OF_NO_TURN.items():
            self._to_fill[name][0] = of_no_turn
            self._to_fill[name] = self._to_fill[name][1:]

    def fill(
        self,
        readers: np.ndarray,
        scales: np.ndarray,
        table: AttentionTable,
        places: np.ndarray | None = None,
    ) -> None:
        """Put the next pass into the buffers, in the order of the device's stream.

        Args:
            readers: `[N, 12]` int64, columns as in `READER`; rows of the pass that are not named read nothing.
            scales: `[N]` float32 that multiply the scores.
            table: angles and merge groups; its items are not looked at.
            places: int64 `[rows, 4]`, where `write` puts a row: its key and its value in layer 0, head stride, layer
                stride, all in elements from the anchor.

        Raises:
            CapacityError: a buffer is too small; all of them hold what they held.
            ValueError: an extent has a form that the buffers are not for.
        """
        if not forms_of(readers) <= self.forms:
            raise ValueError(
                f"expected extents that are raw or {sorted(self.forms)}, found {sorted(forms_of(readers))}"
            )
        work = plan_work(
            readers,
            scales,
            self.rows,
            self._head_dim,
            groups=len(table.group_scale),
            unit_rows=max(1, self._tile.block_rows // self._group),
            units=max(1, self._programs // self._heads),  # not more, or some would come when all others are done
        )
        arrays: dict[str, np.ndarray | tuple[float, ...]] = {
            **work.arrays(),
            "cos": table.cos.numpy(),
            "sin": table.sin.numpy(),
            "group_scale": table.group_scale,
            "group_bias": table.group_bias,
        }
        if places is not None:
            arrays["places"] = places
        needed = {name: len(array) + (name in _OF_NO_TURN) for name, array in arrays.items()} | {"parts": work.parts}
        if any(self.capacity[name] < count for name, count in needed.items()):
            raise CapacityError(needed)
        self._wait_until_sent()
        for name, array in arrays.items():
            self._to_fill[name][: len(array)] = array
        self._to_fill["group_bias"][: len(table.group_bias)] *= np.float32(LOG2_E)  # the kernels' base is 2
        self._send()
        self._growing = work.growing()

    def advance(self, rows: int) -> None:
        """Put the next step of a pass of single rows into the buffers, each of which sees one more key of its own.

        Args:
            rows: of the pass; all of them continue the request that had the row in the pass before.
        """
        self._wait_until_sent()
        pieces, lanes = self._growing
        self._to_fill["pieces"][pieces, 0] += 1
        self._to_fill["lanes"][lanes, 1] += 1
        self._to_fill["places"][:rows, :2] += self._head_dim
        self._send()

    def _wait_until_sent(self) -> None:
        """Until the last copy has read what is written over next."""
        if self._copied is not None:
            self._copied.synchronize()

    def _send(self) -> None:
        self._on_device.copy_(self._staged, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def write(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> None:
        """Put keys and values `[S, H, D]` of a layer where `places` says."""
        a = self.arrays
        write_rows[(key.shape[0], self._heads)](
            key, value, self.anchor, a["places"], layer,
            key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            **self._launch(1, PADDED=padded(self._head_dim)),
        )  # fmt: skip

    def attend(self, query: torch.Tensor, layer: int, scaling: float) -> torch.Tensor:
        """Attention `[S, HQ, D]` of queries `[S, HQ, D]` over what was filled in."""
        a, tile, D = self.arrays, self._tile, self._head_dim
        if query.stride(2) != 1:
            query = query.contiguous()
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        attend_units[(self._programs,)](
            query, self.anchor, a["cos"], a["sin"], a["counts"], a["units"], a["items"], a["entries"], a["pieces"],
            a["piece_offsets"], a["piece_scales"], a["lanes"], self._partial, self._partial_lse,
            layer, scaling * LOG2_E, query.stride(0), query.stride(1),
            **self._launch(
                tile.warps, tile.stages, HEADS=self._heads, GROUP=self._group, PADDED=padded(D), HALF=self._half,
                BLOCK_ROWS=tile.block_rows, BLOCK_TOKENS=tile.block_tokens, INT8="int8" in self.forms,
                FP8="fp8" in self.forms, UPCAST=INTERPRETED,
            ),
        )  # fmt: skip
        merge_parts[(query.shape[0], query.shape[1])](
            self._partial, self._partial_lse, a["counts"], a["row_runs"], a["runs"], a["group_scale"], a["group_bias"],
            output, output.stride(0), output.stride(1), **self._launch(4, PADDED=padded(D), BLOCK_PARTS=16),
        )  # fmt: skip
        return output

    def pass_layer(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        """Write keys and values `[S, H, D]` of a layer, then attend: `[S, HQ, D]` from queries `[S, HQ, D]`."""
        if torch.compiler.is_compiling():
            return attend_to_work(query, key, value, self.number, layer, scaling)
        self._before(layer)
        self.scaling = scaling
        if layer in self._asking:
            self.queries[layer - self._asking.start, : len(query)] = query
        self.write(key, value, layer)
        return self.attend(query, layer, scaling)

    def _launch(self, warps: int, stages: int = 3, **constants: Any) -> dict[str, Any]:
        early = {"launch_pdl": True} if self._early else {}
        return constants | early | {"D": self._head_dim, "EARLY": self._early, "num_warps": warps, "num_stages": stages}

    def _view(self, buffer: torch.Tensor, name: str) -> torch.Tensor:
        begin, size = self._offsets[name]
        kind = {np.int64: torch.int64, np.float32: torch.float32}.get(_KINDS.get(name, np.int32), torch.int32)
        return buffer[begin : begin + size].view(kind)
