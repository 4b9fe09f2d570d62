"""Packets per second from disk, with every checksum, from a warm page cache: benchmarks/results/load-cpu.json."""

import argparse
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.store import PacketStore

RESULTS = Path(__file__).parent / "results"
SCOPE = Scope(Identity(config="c", weights="w", tokenizer="t", rope="r", dtype="bfloat16"), Recipe())
SHAPES = {
    "demo model, 300 tokens": (30, 2, 3, 300, 64),
    "llama-3.1-8b, 512 tokens": (32, 2, 8, 512, 128),
}


def packet(shape, number) -> Packet:
    ids = np.arange(number, number + shape[3], dtype=np.int64)
    kv = torch.randn(shape, generator=torch.Generator().manual_seed(number)).bfloat16()
    return Packet(SCOPE.key(ids), SCOPE, ids, kv)


def seconds(function, runs) -> float:
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--packets", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "load-cpu.json")
    arguments = parser.parse_args()
    rows = []
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder, PacketStore(folder, memory_bytes=0) as store:
            packets = [packet(shape, n) for n in range(arguments.packets)]
            total = sum(p.nbytes for p in packets)
            begin = time.perf_counter()
            for p in packets:
                store.put(p, [])
            written = time.perf_counter() - begin
            files = sorted((Path(folder) / "packets").rglob("*.safetensors"))
            checked = seconds(lambda p=packets, s=store: [s.get(one.key) for one in p], arguments.runs)
            raw = seconds(lambda f=files: [path.read_bytes() for path in f], arguments.runs)
            rows.append(
                {
                    "packet": name,
                    "packets": len(packets),
                    "mb": round(total / 1e6, 1),
                    "kvrag_gbps": round(total / checked / 1e9, 2),
                    "read_bytes_gbps": round(total / raw / 1e9, 2),
                    "write_durable_gbps": round(total / written / 1e9, 2),
                }
            )
    report = {"date": str(date.today()), "threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
