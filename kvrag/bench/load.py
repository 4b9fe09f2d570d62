"""Packets into memory by computing, by loading, and by both at once, at several bandwidths."""

import json
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvrag.bench.pace import PacedReader
from kvrag.bench.timing import median_ms
from kvrag.builder import Chunk
from kvrag.files import replace_file
from kvrag.loading.loader import PacketLoader
from kvrag.loading.settings import Loading
from kvrag.model import LanguageModel
from kvrag.packet import Identity, Packet, PacketKey, Recipe, Scope
from kvrag.plotting import new_figure, save_figure
from kvrag.store import PacketStore
from kvrag.store.bytes import opened, read_exactly

__all__ = ["DiskRates", "LoadBench", "LoadRow", "measure_loading"]

_MODES = {"compute": "compute", "load": "load", "hybrid": "auto"}


@dataclass(frozen=True)
class LoadRow:
    """One way of bringing packets at one bandwidth.

    Attributes:
        bandwidth_gbps: GB (10^9 bytes) a second; None is the disk's own.
        mode: "compute", "load" or "hybrid".
        ms: until all packets can be attached, median.
        ideal_ms: of two sides that lose nothing by working together.
    """

    bandwidth_gbps: float | None
    mode: str
    ms: float
    ideal_ms: float


@dataclass(frozen=True)
class DiskRates:
    """GB a second through the store, and by a loop of reads over the same files; both with an empty page cache."""

    kvrag_gbps: float
    raw_gbps: float


@dataclass(frozen=True)
class LoadBench:
    """Rows, and what they were measured on.

    Attributes:
        model: its name.
        device: it ran on.
        dtype: of keys and values.
        date: ISO 8601.
        context: tokens of all packets.
        packet: tokens of one.
        rows: of all bandwidths.
        disk: the disk's own.
    """

    model: str
    device: str
    dtype: str
    date: str
    context: int
    packet: int
    rows: Sequence[LoadRow]
    disk: DiskRates

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        replace_file(path, (json.dumps(self.as_json(), indent=1) + "\n").encode())

    def plot(self, path: Path) -> None:
        """Draw milliseconds against bandwidth.

        Raises:
            KVRagError: matplotlib is not installed, or does not write such a format.
        """
        figure = new_figure(8, 5)
        axes = figure.subplots()
        paced = [row for row in self.rows if row.bandwidth_gbps]
        for mode in _MODES:
            points = [(row.bandwidth_gbps, row.ms) for row in paced if row.mode == mode]
            axes.plot(*zip(*points, strict=True), label=mode, marker="o")
        ideal = [(row.bandwidth_gbps, row.ideal_ms) for row in paced if row.mode == "hybrid"]
        axes.plot(*zip(*ideal, strict=True), label="ideal", linestyle=":")
        axes.set_xlabel("bandwidth of the store [GB/s]")
        axes.set_ylabel("until all packets can be attached [ms]")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
        axes.set_title(f"{self.model}, {self.dtype} on {self.device}, {self.date}", loc="left")
        save_figure(figure, path)


def measure_loading(
    model: LanguageModel,
    *,
    bandwidths: Sequence[float],
    context: int,
    packet: int,
    runs: int,
    advance: Callable[[], object] = lambda: None,
) -> LoadBench:
    """Measure every way at every bandwidth, and at the disk's own.

    Args:
        model: to compute with.
        bandwidths: GB a second.
        context: tokens of all packets.
        packet: tokens of one; packets hold random numbers.
        runs: of each way; those at the disk's own bandwidth find the page cache without the packets.
        advance: called after each bandwidth.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    scope = Scope(Identity(config="", weights="", tokenizer="", rope="", dtype=dtype), Recipe(), "bench")
    with tempfile.TemporaryDirectory(prefix="kvrag-bench-") as folder, PacketStore(folder, memory_bytes=0) as store:
        if model.device.type == "cuda":
            store.pin_memory()
        chunks = _fill(store, model, scope, context, packet)
        files = sorted(Path(folder, "packets").rglob("*.safetensors"))
        _rows(model, store, scope, chunks, files, None, 3)  # pinned memory takes its time until there is enough of it
        rows: list[LoadRow] = []
        for bandwidth in (*bandwidths, None):
            rows += _rows(model, store, scope, chunks, files, bandwidth, runs)
            advance()
        disk = _disk(store, list(chunks), files, runs)
    return LoadBench(model.name, model.device_name, dtype, str(date.today()), context, packet, rows, disk)


def _fill(store: PacketStore, model: LanguageModel, scope: Scope, context: int, packet: int) -> dict[PacketKey, Chunk]:
    g, random = model.geometry, np.random.default_rng(0)
    chunks: dict[PacketKey, Chunk] = {}
    for first in range(0, context, packet):
        ids = random.integers(0, int(model.config.vocab_size), min(packet, context - first))
        kv = torch.randn(g.layers, 2, g.kv_heads, len(ids), g.head_dim).to(model.dtype)
        made = Packet(scope.key(ids), scope, ids, kv)
        store.put(made, [])
        chunks[made.key] = Chunk("", ids.tolist())
    return chunks


def _rows(
    model: LanguageModel,
    store: PacketStore,
    scope: Scope,
    chunks: dict[PacketKey, Chunk],
    files: Sequence[Path],
    bandwidth: float | None,
    runs: int,
) -> list[LoadRow]:
    nbytes = sum(path.stat().st_size for path in files)
    pool = model.new_pool(nbytes + (1 << 20))

    def attachable(packets: Collection[Packet]) -> None:
        if pool is not None:
            with pool.hold(packets):
                pool.arrivals.wait_for_all()

    def bring(loader: PacketLoader) -> None:
        loader.run(attachable, loader.fetch(chunks, scope).packets.values())

    def forget() -> None:
        if not bandwidth:
            _drop_cached(files)  # a paced reader takes its time whatever the disk can do
        if pool is not None:
            for key in chunks:
                pool.discard(key)

    paced = {"read": PacedReader(bandwidth * 1e9)} if bandwidth else None
    ahead = None if pool is None else pool.send_ahead
    calls: dict[str, Callable[[], object]] = {}
    with ThreadPoolExecutor(1) as model_thread:

        def run(job: Callable[..., Any], *args: Any) -> "Future[Any]":
            return model_thread.submit(job, *args)

        for name, mode in _MODES.items():
            loading = Loading.model_validate({"mode": mode})
            loader = PacketLoader(model, None, store, run, loading, paced, ahead)
            if mode == "auto":
                loader.run(loader.warm_up, scope)
            calls[name] = lambda loader=loader: bring(loader)
        times = median_ms(calls, model.device, runs=runs, before=forget)
    ideal = 1 / (1 / times["compute"] + 1 / times["load"])
    return [LoadRow(bandwidth, name, round(ms, 3), round(ideal, 3)) for name, ms in times.items()]


def _disk(store: PacketStore, keys: Sequence[PacketKey], files: Sequence[Path], runs: int) -> DiskRates:
    nbytes = sum(path.stat().st_size for path in files)
    buffer = memoryview(bytearray(max(path.stat().st_size for path in files)))

    def raw() -> None:
        for path in files:
            with opened(path) as fd:
                read_exactly(fd, buffer[: path.stat().st_size], 0)

    calls = {"kvrag": lambda: [store.read(key) for key in keys], "raw": raw}
    times = median_ms(calls, torch.device("cpu"), runs=runs, before=lambda: _drop_cached(files))
    return DiskRates(*(round(nbytes / times[name] / 1e6, 3) for name in ("kvrag", "raw")))


def _drop_cached(files: Sequence[Path]) -> None:
    """Have the page cache forget files, which are durable already."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
