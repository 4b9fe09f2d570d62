"""How long the packets of a prompt take from a remote whose answers are late.

    python benchmarks/remote.py --out benchmarks/results/remote-cpu.json

The remote is a folder; every request to it waits before it is answered, as on a network. `one_ms` asks for one packet
at a time, `eight_ms` for eight, as the engine does; runs take turns, and every run finds an empty disk.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import Future
from datetime import date
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch

from kvrag.builder import Chunk
from kvrag.loading import Loading, Rates
from kvrag.loading import loader as loading
from kvrag.model import LanguageModel
from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.store import PacketStore
from kvrag.store.objects import Objects

SCOPE = Scope(Identity(config="c", weights="w", tokenizer="t", rope="r", dtype="bfloat16"), Recipe())
TOKENS = {1: 8, 8: 64}  # MiB of a packet of Llama-3.1-8B's shape
NO_MODEL = cast(LanguageModel, None)  # nothing is computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="of each")
    parser.add_argument("--packets", type=int, default=8, help="of a prompt")
    parser.add_argument("--mib", type=int, nargs="+", choices=TOKENS, default=list(TOKENS), help="of a packet")
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[0, 20, 100], help="of an answer")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [measured(mib, delay, options) for mib in options.mib for delay in options.delay_ms]
    report = {"cores": os.cpu_count(), "date": str(date.today()), "packets": options.packets, "rows": rows}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))


def measured(mib: int, delay_ms: float, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        remote = f"file://{folder}/remote"
        packets = {each.key: each for each in (packet(TOKENS[mib], n) for n in range(options.packets))}
        with PacketStore(Path(folder, "builder"), remote=remote) as store:
            for each in packets.values():
                store.put(each, [])
            assert store.flush() == 0
        times: dict[int, list[float]] = {1: [], 8: []}
        for _ in range(options.runs):
            for at_a_time, found in times.items():
                with tempfile.TemporaryDirectory(dir=folder) as empty:
                    found.append(fetch(Path(empty), remote, packets, delay_ms / 1e3, at_a_time))
    one, eight = (1e3 * statistics.median(found) for found in times.values())
    return {"mib": mib, "delay_ms": delay_ms, "one_ms": round(one, 1), "eight_ms": round(eight, 1)}


def fetch(folder: Path, remote: str, packets: dict, delay: float, at_a_time: int) -> float:
    """Seconds until packets that only the remote has are in host memory."""
    chunks = {key: Chunk("", each.token_ids.tolist()) for key, each in packets.items()}
    read = Objects.read

    def late(objects: Objects, path: str) -> Any:
        time.sleep(delay)
        return read(objects, path)

    with PacketStore(folder, remote=remote) as store:
        for number, key in enumerate(packets):
            store.register(SCOPE, f"Chunk number {number} of a collection that nobody has read.", key)
        with mock.patch.object(Objects, "read", late), mock.patch.object(loading, "REQUESTS", at_a_time):
            loader = loading.PacketLoader(NO_MODEL, None, store, run_here, Loading(mode="load", rates=Rates()))
            begin = time.perf_counter()
            fetched = loader.fetch(chunks, SCOPE)
            seconds = time.perf_counter() - begin
    assert fetched.packets.keys() == packets.keys()
    return seconds


def run_here(job: Any, *args: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(job(*args))
    return future


def packet(tokens: int, number: int) -> Packet:
    ids = np.arange(number, number + tokens, dtype=np.int64)
    kv = torch.randn((32, 2, 8, tokens, 128), generator=torch.Generator().manual_seed(number)).bfloat16()
    return Packet(SCOPE.key(ids), SCOPE, ids, kv)


if __name__ == "__main__":
    main()
