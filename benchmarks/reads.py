"""How fast packets come from disk, beside a bare loop of preadv over the same files.

    python benchmarks/reads.py --out benchmarks/results/reads-cpu.json

Runs of all methods take turns. `kvrag` reads, checks and hands out packets; `unchecked` does the same without
checksums; `raw` reads the bytes of the files with as many threads into memory that is there, `raw_one_thread` with one.
Cold means that the kernel was asked to forget the files before every run. `cpu_ms` is the processor time of a packet.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.store import PacketStore, format
from kvrag.store.blocks import BlockArena
from kvrag.store.bytes import read_exactly
from kvrag.store.threads import SHARE, THREADS

SCOPE = Scope(Identity(config="c", weights="w", tokenizer="t", rope="r", dtype="bfloat16"), Recipe())
TOKENS = {1: 8, 8: 64, 64: 512}  # MiB of a packet of Llama-3.1-8B's shape
PIECE = 1 << 20


class Raw:
    """Files into one buffer."""

    def __init__(self, files: Sequence[Path], threads: int) -> None:
        self.files, self.threads = files, threads
        self.buffer = BlockArena()(max(file.stat().st_size for file in files))
        self.buffer.fill_(1)

    def __call__(self) -> None:
        for file in self.files:
            fd, size = os.open(file, os.O_RDONLY), file.stat().st_size
            view = self.buffer.numpy().data
            share = -(-size // self.threads // PIECE) * PIECE

            def read(begin: int, fd: int = fd, end: int = size, view: memoryview = view, share: int = share) -> None:
                for at in range(begin, min(begin + share, end), PIECE):
                    read_exactly(fd, view[at : min(at + PIECE, begin + share, end)], at)

            if self.threads == 1:
                read(0)
            else:
                with ThreadPoolExecutor(self.threads) as pool:
                    list(pool.map(read, range(0, size, share)))
            os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="of each method")
    parser.add_argument("--mib", type=int, nargs="+", choices=TOKENS, default=list(TOKENS), help="of a packet")
    parser.add_argument("--packets", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default the system's temporary one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [measured(mib, arguments) for mib in arguments.mib]
    report = {
        "device": {"cores": os.cpu_count(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
        "date": str(date.today()),
        "torch": torch.__version__,
        "disk": rows[-1]["warm"] | {"mib": rows[-1]["mib"], "cold": rows[-1]["cold"], "warm": rows[-1]["warm"]},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row, indent=1))


def measured(mib: int, arguments: argparse.Namespace) -> dict:
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
        PacketStore(folder, memory_bytes=0) as store,
    ):
        if torch.cuda.is_available():
            store.pin_memory()
        packets = [packet(TOKENS[mib], number) for number in range(arguments.packets)]
        begin = time.perf_counter()
        for each in packets:
            store.put(each, [])
        written = time.perf_counter() - begin
        keys, total = [each.key for each in packets], sum(each.nbytes for each in packets)
        del packets
        files = sorted((Path(folder) / "packets").rglob("*.safetensors"))
        threads = max(1, min(THREADS, (mib << 20) // SHARE))

        def load() -> None:
            for key in keys:
                assert store.get(key) is not None

        def unchecked() -> None:
            with mock.patch.object(format, "read_hashed", read_unchecked):
                load()

        methods = {"kvrag": load, "unchecked": unchecked, "raw": Raw(files, threads), "raw_one_thread": Raw(files, 1)}
        row = {"mib": mib, "packets": len(keys), "threads": threads, "write_durable_gbps": gbps(total, written)}
        return row | {
            "warm": rates(methods, total, len(keys), arguments.runs, lambda: None),
            "cold": rates(methods, total, len(keys), max(3, arguments.runs // 3), lambda: forget(files)),
        }


def read_unchecked(fd: int, data: memoryview, offset: int, layers: int) -> list:
    """Fill `data`; its checksums equal everything."""
    read_exactly(fd, data, offset)
    return [mock.ANY] * layers


def rates(methods: dict[str, Callable], total: int, packets: int, runs: int, before: Callable[[], None]) -> dict:
    wall: dict[str, list[float]] = {name: [] for name in methods}
    cpu: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(runs):
        for name, method in methods.items():
            before()
            begin, busy = time.perf_counter(), time.process_time()
            method()
            wall[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - busy)

    def of_pairs(above: str, below: str) -> float:
        """Median ratio of runs that came one after the other."""
        return round(statistics.median(b / a for a, b in zip(wall[above], wall[below], strict=True)), 3)

    return {
        **{f"{name}_gbps": gbps(total, statistics.median(times)) for name, times in wall.items()},
        **{f"{name}_cpu_ms": round(1e3 * statistics.median(times) / packets, 2) for name, times in cpu.items()},
        "of_raw": of_pairs("kvrag", "raw"),
        "of_raw_one_thread": of_pairs("kvrag", "raw_one_thread"),
        "of_unchecked": of_pairs("kvrag", "unchecked"),
    }


def forget(files: Sequence[Path]) -> None:
    """Have the kernel drop the files from its cache; they are on the disk already."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def packet(tokens: int, number: int) -> Packet:
    ids = np.arange(number, number + tokens, dtype=np.int64)
    kv = torch.randn((32, 2, 8, tokens, 128), generator=torch.Generator().manual_seed(number)).bfloat16()
    return Packet(SCOPE.key(ids), SCOPE, ids, kv)


def gbps(nbytes: int, seconds: float) -> float:
    return round(nbytes / seconds / 1e9, 2)


if __name__ == "__main__":
    main()
