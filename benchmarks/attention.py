"""How near packet attention comes to the memory's bandwidth, without a model around it.

    python benchmarks/attention.py --out benchmarks/results/attention-h200.json

A pass of all layers is recorded as one CUDA graph and replayed. Every layer reads keys and values of its own, so the
bytes come from memory and not from a cache. Packets of int8 and fp8 are read in their bytes. `--tile` tries another
tile than the one that is built in.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from kvrag_kernels.packet_attention import AttentionTable, device
from kvrag_kernels.packet_attention.device import DeviceWork
from kvrag_kernels.packet_attention.encoded import FORMS
from kvrag_kernels.packet_attention.readers import EVERY
from kvrag_kernels.packet_attention.tiles import TileShape, tile_shape
from kvrag_kernels.packet_attention.work import CapacityError

from kvrag.bench import measure_bandwidth
from kvrag.rope import Rope
from kvrag.store.codecs import CODECS

LAYERS, KV_HEADS, HEAD_DIM = 32, 8, 128
REPLAYS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32, 64, 128], help="of a request")
    parser.add_argument("--requests", type=int, nargs="+", default=[4, 16], help="that decode together")
    parser.add_argument("--packet", type=int, default=512)
    parser.add_argument("--codec", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--group", type=int, default=4, help="query heads to a KV head")
    parser.add_argument("--tile", type=int, nargs=5, help="rows, tokens, warps, stages, programs a multiprocessor")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("expected a GPU, found none")
    memory = measure_bandwidth(torch.device("cuda")).memory
    rows = []
    passes = [(1, n) for n in args.rows] + [(n, 1) for n in args.requests]
    for context, codec in ((context, codec) for context in args.context for codec in args.codec):
        blocks = [draw(args.packet, codec) for _ in range(context // args.packet)]
        for requests, count in passes:
            tile = TileShape(*args.tile) if args.tile else None
            ms, used = measure(blocks, args.packet, codec, requests, count, args.group, tile)
            rate = sum(block.nbytes for block in blocks) / ms / 1e6
            rows.append(
                {"context": context, "codec": codec, "requests": requests, "rows": count, "ms": round(ms, 4)}
                | {"gbps": round(rate, 1), "of_memory": round(rate / memory, 3), "tile": str(used)}
            )
            told = f"{context:6d} tokens, {codec:4s}, {requests:2d} x {count:3d} rows"
            print(f"{told}: {ms:7.3f} ms, {rate / memory:.2f} of memory")
    found = {"device": torch.cuda.get_device_name(), "hbm_gbps": round(memory, 1), "layers": LAYERS, "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def draw(tokens: int, codec: str) -> torch.Tensor:
    """Random layers `[L, 2, H, T, D]`, or `[L, B]` in a codec's bytes, as the device pool has them."""
    shape = (LAYERS, 2, KV_HEADS, tokens, HEAD_DIM)
    kv = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    if codec == "raw":
        return kv
    layers = [CODECS[codec].encode(layer) for layer in kv]
    return torch.stack([torch.nn.functional.pad(layer, (0, -len(layer) % 16)) for layer in layers])


def measure(
    blocks: list[torch.Tensor],
    tokens: int,
    codec: str,
    requests: int,
    count: int,
    group: int,
    tile: TileShape | None,
) -> tuple[float, TileShape]:
    """Milliseconds of the attention of all layers, `requests` of `count` rows each over the same blocks; the tile."""
    rows = requests * count
    tile = tile or tile_shape(rows, group, HEAD_DIM, hopper=True, encoded=codec != "raw")
    work = make_work(codec, rows, group, tile, {})
    try:
        fill(work, blocks, tokens, codec, requests, count)
    except CapacityError as error:
        work = make_work(codec, rows, group, tile, error.needed)
        fill(work, blocks, tokens, codec, requests, count)
    query = torch.randn(rows, KV_HEADS * group, HEAD_DIM, dtype=torch.bfloat16, device="cuda")

    def attend() -> None:
        for layer in range(LAYERS):
            work.attend(query, layer, HEAD_DIM**-0.5)

    attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / REPLAYS, tile


def make_work(codec: str, rows: int, group: int, tile: TileShape, capacity: dict[str, int]) -> DeviceWork:
    anchor = torch.zeros(HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    options = {"capacity": capacity, "forms": {codec} - {"raw"}}
    shape, device.tile_shape = device.tile_shape, lambda *_, **__: tile
    try:
        return DeviceWork(anchor, rows, KV_HEADS, group, HEAD_DIM, HEAD_DIM // 2, **options)
    finally:
        device.tile_shape = shape


def fill(work: DeviceWork, blocks: list[torch.Tensor], tokens: int, codec: str, requests: int, count: int) -> None:
    starts = [number * tokens for number in range(len(blocks))]
    turns = {start: 1 + n for n, start in enumerate(starts[1:])} | {0: 0}
    head, half = tokens * HEAD_DIM, KV_HEADS * tokens * HEAD_DIM
    readers = []
    for request in range(requests):
        for block, start in zip(blocks, starts, strict=True):
            begin = block.data_ptr() - work.anchor.data_ptr()
            key = begin // block.element_size()
            scales = 0 if codec == "raw" else (begin + 2 * half) // 2
            place = (key, key + half, head, block.stride(0), scales, FORMS.index(codec), tokens)
            readers.append((*place, 0, request * count, (request + 1) * count, EVERY, turns[start]))
    cos, sin = Rope(10_000.0 ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)).angles(starts[1:])
    work.fill(np.asarray(readers, np.int64), np.ones(len(readers), np.float32), AttentionTable((), cos, sin))


if __name__ == "__main__":
    main()
