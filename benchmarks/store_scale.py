"""A store of many packets: opening it, looking texts up and what it takes in memory.

    python benchmarks/store_scale.py --packets 100000 --out benchmarks/results/store-scale.json

Packets are real files of about 5 kB, written without waiting for the disk. Everything is measured in a process of its
own that has imported all it needs and used a store of one packet before. `open_s` is the time until the store is open
and its matcher knows all texts; `lookup_us` is the median of finding a text's packet and its row.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from kvrag.matching import fingerprint
from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.store import PacketStore
from kvrag.store.format import write_packet
from kvrag.store.records import PacketRow

SCOPE = Scope(Identity(config="c", weights="w", tokenizer="t", rope="r", dtype="bfloat16"), Recipe())
KV = torch.zeros(2, 2, 1, 8, 16, dtype=torch.bfloat16)
LOOKUPS = 5000
TARGETS = {"open_s": 1.0, "lookup_us": 50.0, "bytes_per_packet": 100.0}


def text(number: int) -> str:
    return f"{random.Random(number).getrandbits(256):064x} is what document number {number} says."


def fill(root: Path, packets: int) -> None:
    with PacketStore(root) as store, store._index.exclusive():
        for number in range(packets):
            ids = np.arange(number, number + 8, dtype=np.int64)
            packet = Packet(SCOPE.key(ids), SCOPE, ids, KV)
            path = store._disk.path(SCOPE.identity.digest, packet.key)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.open("wb") as file:
                row = PacketRow.of(write_packet(file.fileno(), packet), file.tell())
            known = fingerprint(text(number))
            assert known
            store._index.add(row, [known])


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(small: Path, large: Path, packets: int, results) -> None:
    with PacketStore(small) as store:
        _lookups(store, [0])
        before = resident()
        begin = time.perf_counter()
        with PacketStore(large) as opened:
            assert len(opened.matcher(SCOPE)) == packets
            open_s = time.perf_counter() - begin
            grown = resident() - before
            chosen = random.Random(0).sample(range(packets), min(LOOKUPS, packets))
            lookup = _lookups(opened, chosen)
            begin = time.perf_counter()
            assert opened.stat().packets == packets
            stat_s = time.perf_counter() - begin
            results.send(
                {
                    "packets": packets,
                    "open_s": round(open_s, 3),
                    "lookup_us": round(1e6 * statistics.median(lookup), 1),
                    "lookup_p99_us": round(1e6 * statistics.quantiles(lookup, n=100)[98], 1),
                    "bytes_per_packet": round(grown / packets, 1),
                    "stat_s": round(stat_s, 3),
                }
            )


def _lookups(store: PacketStore, numbers: list[int]) -> list[float]:
    digests = [known.digest for known in map(fingerprint, map(text, numbers)) if known]
    times = []
    for digest in digests:
        begin = time.perf_counter()
        key = store.find(SCOPE, digest)
        assert key is not None
        row = store._index.row(key)
        times.append(time.perf_counter() - begin)
        assert row is not None
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to make the store, by default in a temporary place")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        begin = time.perf_counter()
        fill(small, 1)
        fill(large, arguments.packets)
        filled = time.perf_counter() - begin
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(small, large, arguments.packets, sender))
        process.start()
        report = receiver.recv()
        process.join()
        begin = time.perf_counter()
        with PacketStore(large) as store:
            assert store.gc(map(text, range(arguments.packets)), grace=0, dry_run=True).removed == ()
        report |= {"gc_s": round(time.perf_counter() - begin, 2), "fill_s": round(filled, 1)}
    met = {name: report[name] <= most for name, most in TARGETS.items()}
    report |= {"targets": TARGETS, "met": met, "date": str(date.today()), "cores": os.cpu_count()}
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
