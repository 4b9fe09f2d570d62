"""Every reuse method on one bench, into one file and one chart.

    python benchmarks/methods.py --folder data --jobs 8 --out benchmarks/results/methods-h200.json

Costs are measured first, alone on the first GPU: on a few prompts of every set, and at the shape of a larger model with
random weights, whose rows stand under "times" with that model's name. Quality is measured by `--jobs` processes on each
GPU; those of the other GPUs begin at once. They take a few questions of a set at a time and answer them by all methods,
so that every row of a set counts the same questions, as many as there was time for.

`data` holds `squad_dev.json.gz`, `multihop.jsonl.gz` and `mtrag.jsonl.gz`; sets whose file is missing are left out and
named. The file is written every minute, and the chart beside it, as a PNG, at the end.

With `--add` the methods join those of a file that is there, on as many of the same questions; what the file has already
stays as it is.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kvrag import PacketEngine
from kvrag.bench import open_geometry
from kvrag.bench.methods import measure_method_times
from kvrag.cli.eval import load_set
from kvrag.cli.prompts import find_template
from kvrag.evaluation.backends import AnswererChoice
from kvrag.evaluation.cases import Case, Cases, Window, make_cases
from kvrag.evaluation.chart import plot_pareto
from kvrag.evaluation.costs import Costs, MethodRow, measure_costs
from kvrag.evaluation.quality import NATURAL, Score, methods_from_names, rows_of, score
from kvrag.evaluation.report import QualityReport, Setup, write_atomically
from kvrag.strategies import available_strategies

SETS = [
    ("squad_dev.json.gz", 4),
    ("squad_dev.json.gz", 8),
    ("multihop.jsonl.gz", 10),
    ("needle", 8),
    ("biography", 8),
    ("mtrag.jsonl.gz", 4),
]
TOKENS = 24
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="of the files of questions")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--adapter", default="auto")
    parser.add_argument("--methods", default=",".join(available_strategies()))
    parser.add_argument("--limit", type=int, default=2000, help="questions of each set, at most")
    parser.add_argument("--jobs", type=int, default=1, help="processes on each GPU")
    parser.add_argument("--budget-seconds", type=float, default=3600.0, help="begin nothing behind them")
    parser.add_argument("--timed", type=int, default=4, help="prompts of each set to time")
    parser.add_argument("--runs", type=int, default=5, help="of each timed prompt by each method")
    parser.add_argument("--geometry", default="llama-3.1-8b" if torch.cuda.is_available() else "", help="empty: none")
    parser.add_argument("--at-a-time", type=int, default=8, help="questions that a process answers together")
    parser.add_argument("--add", action="store_true", help="to the methods that the file has")
    parser.add_argument("--draw", action="store_true", help="only draw the chart of the file that is there")
    args = parser.parse_args()
    if args.draw:
        draw(args.out)
        return

    end = time.monotonic() + args.budget_seconds
    names = args.methods.split(",")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",") if torch.cuda.is_available() else [None]
    with TemporaryDirectory(prefix="kvrag-methods-") as folder:
        engine = open_engine(args.model, args.adapter, folder)
        with engine, ThreadPoolExecutor(args.jobs * len(gpus)) as pool:
            known = json.loads(args.out.read_text()) if args.add else {"rows": [], "times": []}
            sets = make_sets(args, names, engine, known["rows"])
            setup = Setup.of(engine)
            for name, value in asdict(setup).items():
                if name != "date" and known.get(name, value) != value:
                    raise SystemExit(f"{args.out} was measured with another {name}; choose another file")
            bench = Bench(args.out, sets, setup, known, args.at_a_time)
            slices = iter(Slices(sets, args.at_a_time))

            def work(gpu: str | None) -> list[Future[None]]:
                return [pool.submit(answer, args, gpu, slices, bench.add, end) for _ in range(args.jobs)]

            jobs = [job for gpu in gpus[1:] for job in work(gpu)]
            for number, cases in enumerate(sets):
                costs = measure_costs(engine, cases.cases[: args.timed], methods_from_names(names), runs=args.runs)
                bench.add_costs(number, costs)
            if args.geometry:
                bench.add_times(geometry_times(args, names))
            jobs += work(gpus[0])
            while wait(jobs, timeout=60).not_done:
                bench.save()
            for job in jobs:
                job.result()
    if bench.save():
        draw(args.out)


def draw(path: Path) -> None:
    """Quality against the time at the larger model's shape, if it was measured, on as many packets, or on the model."""
    report = json.loads(path.read_text())
    times = {(row["method"], row["packets"]): row["ttft_ms"] for row in report["times"]}
    lengths = {packets for _, packets in times}

    def milliseconds(row: MethodRow) -> float | None:
        nearest = min(lengths, key=lambda packets: abs(packets - row.passages))
        return times.get((row.method, nearest))

    options: dict[str, Any] = {"by_first_token": ["mtrag"]}
    if times:
        model, size = report["times"][0]["model"], report["times"][0]["packet"]
        axis = f"time to first token [ms] of {model},\nas many packets of {size} tokens (4, 8 for 10), in host memory"
        options |= {"milliseconds": milliseconds, "axis": axis}
    setup = Setup(**{name: report[name] for name in Setup.__dataclass_fields__})
    rows = [MethodRow(**{name: value for name, value in row.items() if name != "date"}) for row in report["rows"]]
    plot_pareto(setup, rows, path.with_suffix(".png"), **options)


class Slices:
    """A few questions of each set in turn, for whoever asks; `(set, first, cases)`."""

    def __init__(self, sets: Sequence[Cases], size: int) -> None:
        self._sets, self._size, self._lock = sets, size, threading.Lock()
        self._all = self._each()

    def __iter__(self) -> Iterator[tuple[int, int, Sequence[Case]]]:
        return self

    def __next__(self) -> tuple[int, int, Sequence[Case]]:
        with self._lock:
            return next(self._all)

    def _each(self) -> Iterator[tuple[int, int, Sequence[Case]]]:
        for first in range(0, max(len(cases.cases) for cases in self._sets), self._size):
            for number, cases in enumerate(self._sets):
                if first < len(cases.cases):
                    yield number, first, cases.cases[first : first + self._size]


class Bench:
    """What is known so far, and the file that holds it: a row where both quality and costs are known."""

    def __init__(self, path: Path, sets: Sequence[Cases], setup: Setup, known: dict[str, Any], size: int) -> None:
        self.times: list[dict[str, Any]] = known["times"]
        self.setup = setup
        self._known = known
        self._path, self._sets, self._size, self._lock = path, sets, size, threading.Lock()
        self._costs: dict[int, dict[str, Costs]] = {}
        self._scores: list[dict[int, dict[str, list[Score]]]] = [{} for _ in sets]

    def add(self, number: int, first: int, found: dict[str, list[Score]]) -> None:
        """Scores of some questions of a set by its number."""
        with self._lock:
            self._scores[number][first] = found

    def add_costs(self, number: int, costs: dict[str, Costs]) -> None:
        """Costs of all methods on a set."""
        self._costs[number] = costs
        self.save()

    def add_times(self, times: list[dict[str, Any]]) -> None:
        """Of methods at the shape of a larger model, but for those that are known."""
        known = {row["method"] for row in self.times}
        self.times = self.times + [row | {"date": self.setup.date} for row in times if row["method"] not in known]

    def save(self) -> bool:
        """Write the file, its rows set by set, the best first; whether there are any."""
        groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        for row in self._known["rows"]:
            groups.setdefault(set_of(row), []).append(row)
        for number, costs in self._costs.items():
            for row in self._measured(number, costs):
                group = groups.setdefault(set_of(row), [])
                if row["method"] not in {other["method"] for other in group}:
                    group.append(row)
        rows = [row for group in groups.values() for row in sorted(group, key=lambda r: (-(r["f1"] or 0.0), r["kl"]))]
        told = QualityReport(self.setup, SEED, TOKENS).as_json() | self._known | {"rows": rows, "times": self.times}
        write_atomically(self._path, json.dumps(told, indent=1) + "\n")
        return bool(rows)

    def _measured(self, number: int, costs: dict[str, Costs]) -> list[dict[str, Any]]:
        """Rows of a set by its number; beside known ones only when all of their questions were answered."""
        with self._lock:
            parts = sorted(self._scores[number].items())
        cases = self._sets[number]
        answered = tuple(case for first, _ in parts for case in cases.cases[first : first + self._size])
        if not answered or (self._known["rows"] and len(answered) < len(cases.cases)):
            return []
        found = {name: [s for _, part in parts for s in part[name]] for name in costs}
        rows = rows_of(replace(cases, cases=answered), found, seed=SEED)
        return [asdict(MethodRow.of(row, costs[row.method])) | {"date": self.setup.date} for row in rows]


def set_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """What a row was measured on."""
    return row["dataset"], row["template"], row["passages"]


def make_sets(
    args: argparse.Namespace, names: Sequence[str], engine: PacketEngine, known: Sequence[dict[str, Any]]
) -> list[Cases]:
    """The questions of every set whose file is there; as many as known rows have, if there are some."""
    counts = {set_of(row): row["n"] for row in known}
    model, template = engine.model, find_template("llama-index-compact")
    window = Window(model, list(methods_from_names(names).values()), engine.adapter, TOKENS)
    sets: list[Cases] = []
    for name, passages in SETS:
        file = args.folder / name
        if "." in name and not file.exists():
            sys.stderr.write(f"left out: {name}, which is not in {args.folder}\n")
            continue
        questions = load_set(str(file) if "." in name else name, args.limit, SEED)
        cases = make_cases(questions, passages, template, model, window, seed=SEED, limit=args.limit)
        count = counts.get((cases.dataset, cases.template, cases.passages), len(cases.cases))
        sets.append(replace(cases, cases=cases.cases[:count]))
    return sets


def geometry_times(args: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    """All methods on random packets, at the shape of a larger model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_geometry(args.geometry, device, torch.bfloat16)
    model.record_passes()
    methods = {name: method for name, method in methods_from_names(names).items() if name != NATURAL}
    rows = [
        row
        for packets in (4, 8, 16)
        for row in measure_method_times(model, methods, packets=packets, packet=512, question=32, runs=args.runs)
    ]
    model.close()
    return [{"device": model.device_name, "dtype": "bfloat16"} | asdict(row) for row in rows]


def open_engine(model: str, adapter: str, folder: str) -> PacketEngine:
    """One of many on its GPU."""
    options = {"computed_bytes": 0, "device_memory": 1 << 30}
    return PacketEngine.from_pretrained(model, store=folder, adapter=adapter, **options)


def answer(
    args: argparse.Namespace,
    gpu: str | None,
    slices: Iterator[tuple[int, int, Sequence[Case]]],
    add: Callable[[int, int, dict[str, list[Score]]], None],
    end: float,
) -> None:
    """Have a process of its own answer questions until there are none left, or no time."""
    options = (args.model, args.adapter, args.methods, gpu)
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=begin, initargs=options) as process:
        for number, first, cases in slices:
            if time.monotonic() >= end:
                return
            add(number, first, process.submit(scored, cases).result())


_PROCESS: dict[str, Any] = {}  # what a process opens once


def begin(model: str, adapter: str, names: str, gpu: str | None) -> None:
    """Open the engine."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        torch.set_num_threads(1)
    folder = _PROCESS["folder"] = TemporaryDirectory(prefix="kvrag-methods-")
    engine = open_engine(model, adapter, folder.name)
    _PROCESS["methods"] = methods_from_names(names.split(","))
    _PROCESS["answerer"] = AnswererChoice(engine, "auto", TOKENS)


def scored(cases: Sequence[Case]) -> dict[str, list[Score]]:
    """Answers by all methods."""
    return score(cases, _PROCESS["methods"], _PROCESS["answerer"])


if __name__ == "__main__":
    main()
