"""Every reuse method on one bench, into one file and one chart.

    python benchmarks/methods.py --folder data --jobs 8 --out benchmarks/results/methods-h200.json

Costs come from a run of `kvrag eval methods` for every set and number of passages, one after the other and alone on the
first GPU. Quality comes from more runs, `--jobs` of them at a time on the other GPUs, or on the only one when costs are
known: one for all methods that only attach, and one for each that computes tokens anew, because it takes its questions
one by one. On a GPU a last run times the methods at the shape of a larger model with random weights; its rows stand
under "times" with that model's name.

`data` holds `squad_dev.json.gz`, `multihop.jsonl.gz` and `mtrag.jsonl.gz`; sets whose file is missing are left out and
named. The file is written after every run, and the chart beside it, as a PNG, at the end. The time left is divided
between the sets; a method that runs out of time has fewer questions, as its row says.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from kvrag.evaluation.chart import plot_pareto
from kvrag.evaluation.costs import Costs, MethodRow
from kvrag.evaluation.report import Setup
from kvrag.files import replace_file
from kvrag.strategies import available_strategies, strategy_from_name

SETS = [
    ("squad_dev.json.gz", 4),
    ("squad_dev.json.gz", 8),
    ("multihop.jsonl.gz", 10),
    ("needle", 8),
    ("biography", 8),
    ("mtrag.jsonl.gz", 4),
]
COSTS = set(Costs.__dataclass_fields__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the files of questions")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--adapter", default="auto")
    parser.add_argument("--methods", default=",".join(available_strategies()))
    parser.add_argument("--limit", type=int, default=2000, help="questions of each set, at most")
    parser.add_argument("--jobs", type=int, default=1, help="measuring quality at a time")
    parser.add_argument("--budget-seconds", type=float, default=3600.0, help="for everything")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--timed", type=int, default=4, help="prompts of each set to time")
    parser.add_argument("--geometry", default="llama-3.1-8b" if torch.cuda.is_available() else "", help="empty: none")
    args = parser.parse_args()

    end = time.monotonic() + args.budget_seconds
    sets = [(place(args.folder, name), passages) for name, passages in SETS]
    common = ["--model", args.model, "--adapter", args.adapter, "--batch-tokens", args.batch_tokens]
    options = [["--data", name, "--passages", passages, *common] for name, passages in sets if name is not None]
    names = args.methods.split(",")
    anew = [name for name in names if not strategy_from_name(name).packs]
    groups = [group for group in (",".join(name for name in names if name not in anew), *anew) if group]
    bench = Bench(args.out, names)
    timed = ["--methods", args.methods, "--limit", args.timed, "--timed", args.timed]
    gpus = list(range(torch.cuda.device_count()))
    spare: queue.SimpleQueue[int] = queue.SimpleQueue()
    for gpu in (gpus[1:] or gpus) * args.jobs:
        spare.put(gpu)

    def quality(of: int, group: str) -> None:
        gpu = spare.get() if gpus else None
        try:
            # The jobs that wait behind this one have a right to their share of the time.
            left = (end - time.monotonic()) / (1 + waiting(jobs) // args.jobs)
            job = ["--methods", group, *options[of], "--limit", args.limit, "--timed", 1, "--runs", 1]
            bench.add(of, run([*job, "--budget-seconds", max(1.0, left)], end, gpu), costs=False)
        finally:
            if gpu is not None:
                spare.put(gpu)

    jobs: list[Future[None]] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        if len(gpus) > 1:
            jobs += [pool.submit(quality, of, group) for of in range(len(options)) for group in groups]
        for of, given in enumerate(options):
            bench.add(of, run([*timed, *given], end, 0 if gpus else None), costs=True)
        if args.geometry:
            shape = ["--methods", args.methods, "--times-only", "--geometry", args.geometry]
            bench.add_times(run(shape, end, 0 if gpus else None))
        if len(gpus) < 2:
            jobs += [pool.submit(quality, of, group) for of in range(len(options)) for group in groups]
    for job in jobs:
        job.result()
    rows = bench.rows()
    if rows:
        setup = Setup(**{name: bench.setup[name] for name in Setup.__dataclass_fields__})
        plot_pareto(setup, [MethodRow(**row) for row in rows], args.out.with_suffix(".png"))


class Bench:
    """What is known so far, and the file that holds it: a row where both quality and costs are known.

    Args:
        path: of the file.
        names: of the methods, in the order of rows that are equally good.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self.setup: dict[str, Any] = {}
        self._path, self._names, self._lock = path, names, threading.Lock()
        self._halves: dict[tuple[int, str], dict[str, Any]] = {}
        self._times: list[dict[str, Any]] = []

    def add(self, of: int, found: dict[str, Any], *, costs: bool) -> None:
        """Rows of a set by its number, of which the costs or everything else count."""
        with self._lock:
            for row in found.get("rows", []):
                known = self._halves.setdefault((of, row["method"]), {})
                half = {name: value for name, value in row.items() if (name in COSTS) == costs}
                if costs or half["n"] > known.get("n", 0):  # every job has the methods that all refer to
                    known.update(half)
            self._save({name: value for name, value in found.items() if name != "rows"})

    def add_times(self, found: dict[str, Any]) -> None:
        """Rows of a model with random weights."""
        with self._lock:
            label = {name: found[name] for name in ("device", "dtype", "date") if name in found}
            self._times = [label | row for row in found.get("rows", [])]
            self._save({})

    def rows(self) -> list[dict[str, Any]]:
        """Set by set, the best first."""
        complete = [(of, row) for (of, _), row in self._halves.items() if "n" in row and row.keys() >= COSTS]
        return [row for _, row in sorted(complete, key=lambda pair: (pair[0], -(pair[1]["f1"] or 0), pair[1]["kl"]))]

    def _save(self, setup: dict[str, Any]) -> None:
        self.setup = self.setup or setup
        report = self.setup | {"rows": self.rows(), "times": self._times}
        replace_file(self._path, (json.dumps(report, indent=1) + "\n").encode())


def waiting(jobs: list[Future[None]]) -> int:
    return sum(not (job.running() or job.done()) for job in jobs)


def place(folder: Path, name: str) -> str | None:
    """The file of a set, or the name of one that kvrag makes."""
    if "." not in name:
        return name
    if (folder / name).exists():
        return str(folder / name)
    sys.stderr.write(f"left out: {name}, which is not in {folder}\n")
    return None


def run(options: list[Any], end: float, gpu: int | None) -> dict[str, Any]:
    """One `kvrag eval methods`; what it wrote, even if it failed or was stopped half a minute behind the end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "methods.json"
        command = [sys.executable, "-m", "kvrag", "eval", "methods", *map(str, options), "--out", str(out)]
        on = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        try:
            left = max(30.0, end - time.monotonic() + 30)
            failed = subprocess.run(command, timeout=left, check=False, env=os.environ | on).returncode != 0
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            sys.stderr.write(f"failed or out of time: {' '.join(command)}\n")
        return json.loads(out.read_text()) if out.exists() else {}


if __name__ == "__main__":
    main()
