"""Every reuse method on one bench, into one file and one chart.

    python benchmarks/methods.py --folder data --out benchmarks/results/methods-h200.json

Quality and costs come from `kvrag eval methods`, a run for every set and number of passages; on a GPU another run times
the methods at the shape of a larger model with random weights, whose rows stand under "times" with that model's name.
`data` holds `squad_dev.json.gz`, `multihop.jsonl.gz` and `mtrag.jsonl.gz`; sets whose file is missing are left out and
named. The file is written after every set, and the chart beside it, as a PNG, at the end. The time left is divided
between the sets; a set that runs out of time has the questions that all methods answered.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from kvrag.evaluation.chart import plot_pareto
from kvrag.evaluation.costs import MethodRow
from kvrag.evaluation.report import Setup
from kvrag.files import replace_file

SETS = [
    ("squad_dev.json.gz", 4),
    ("squad_dev.json.gz", 8),
    ("multihop.jsonl.gz", 10),
    ("needle", 8),
    ("biography", 8),
    ("mtrag.jsonl.gz", 4),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the files of questions")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--adapter", default="auto")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--limit", type=int, default=2000, help="questions of each set, at most")
    parser.add_argument("--budget-seconds", type=float, default=3600.0, help="for everything")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--timed", type=int, default=4, help="prompts of each set to time")
    parser.add_argument("--geometry", default="llama-3.1-8b" if torch.cuda.is_available() else "", help="empty: none")
    args = parser.parse_args()

    end = time.monotonic() + args.budget_seconds
    sets = [(place(args.folder, name), passages) for name, passages in SETS]
    sets = [(source, passages) for source, passages in sets if source is not None]
    common = ["--methods", args.methods]
    report: dict[str, Any] = {"rows": [], "times": []}
    if args.geometry:
        share = time.monotonic() + args.budget_seconds / (1 + len(sets))
        found = run([*common, "--times-only", "--geometry", args.geometry], share)
        label = {name: found[name] for name in ("device", "dtype", "date")} if found else {}
        report["times"] = [label | row for row in found.get("rows", [])]
        save(report, args.out)
    for number, (source, passages) in enumerate(sets):
        left = (end - time.monotonic()) / (len(sets) - number)
        if left < 1:
            sys.stderr.write(f"no time left for {source} with {passages} passages\n")
            continue
        options = ["--data", source, "--passages", passages, "--model", args.model, "--adapter", args.adapter]
        options += ["--limit", args.limit, "--budget-seconds", left, "--timed", args.timed]
        found = run([*common, *options, "--batch-tokens", args.batch_tokens], end)
        if found:
            report = found | {"rows": report["rows"] + found["rows"], "times": report["times"]}
            save(report, args.out)
    if report["rows"]:
        setup = Setup(**{name: report[name] for name in Setup.__dataclass_fields__})
        plot_pareto(setup, [MethodRow(**row) for row in report["rows"]], args.out.with_suffix(".png"))


def place(folder: Path, name: str) -> str | None:
    """The file of a set, or the name of one that kvrag makes."""
    if "." not in name:
        return name
    if (folder / name).exists():
        return str(folder / name)
    sys.stderr.write(f"left out: {name}, which is not in {folder}\n")
    return None


def run(options: list[Any], end: float) -> dict[str, Any]:
    """One `kvrag eval methods`; what it wrote, even if it failed or was stopped half a minute behind the end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "methods.json"
        command = [sys.executable, "-m", "kvrag", "eval", "methods", *map(str, options), "--out", str(out)]
        try:
            done = subprocess.run(command, timeout=max(30.0, end - time.monotonic() + 30), check=False)
            failed = done.returncode != 0
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            sys.stderr.write(f"failed or out of time: {' '.join(command)}\n")
        return json.loads(out.read_text()) if out.exists() else {}


def save(report: dict[str, Any], path: Path) -> None:
    replace_file(path, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
