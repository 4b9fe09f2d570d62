"""What storing packets in fewer bytes costs: size, speed, and answers beside full recompute's.

    python benchmarks/codecs.py --data squad_dev.json.gz --limit 40 --out benchmarks/results/codecs-cpu.json

Every codec gets a `kvrag eval quality` of its own, over the same questions, `--jobs` of them at a time. Sizes and
speeds are those of one layer of random numbers of Llama-3.1-8B's shape, 512 tokens, on one thread.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from kvrag.store.codecs import CODECS

SHAPE = (2, 8, 512, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["needle", "biography"])
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--jobs", type=int, default=1, help="codecs at a time")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    report: dict = {"codecs": [speed(name) for name in CODECS], "quality": []}
    with ThreadPoolExecutor(args.jobs) as pool:
        for name, found in zip(CODECS, pool.map(partial(quality, args), CODECS), strict=True):
            rows = found.pop("rows")
            report["quality"] += [{"codec": name, **row} for row in rows if row["method"] == "kv-packet"]
            report = {k: v for k, v in found.items() if k != "codec"} | report
            args.out.write_text(json.dumps(report, indent=1) + "\n")


def quality(args: argparse.Namespace, codec: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "quality.json"
        command = [sys.executable, "-m", "kvrag", "eval", "quality", "--model", args.model, "--codec", codec]
        command += ["--backend", "engine", "--limit", str(args.limit), "--passages", str(args.passages)]
        command += ["--methods", "kv-packet", "--out", str(out)]
        subprocess.run([*command, *(f"--data={source}" for source in args.data)], check=True)
        return json.loads(out.read_text())


def speed(name: str) -> dict:
    torch.set_num_threads(1)
    codec = CODECS[name]
    layer = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()
    stored, again = codec.encode(layer), torch.empty_like(layer)
    return {
        "codec": name,
        "bytes_of_raw": round(stored.numel() / layer.nbytes, 3),
        "encode_gbps": rate(lambda: codec.encode(layer), layer.nbytes),
        "decode_gbps": rate(lambda: codec.decode(stored, again), layer.nbytes),
    }


def rate(call, nbytes: int) -> float:
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return round(nbytes / statistics.median(times) / 1e9, 2)


if __name__ == "__main__":
    main()
