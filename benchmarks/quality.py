"""Everything that is said about the shipped adapter's quality, into one file.

    python benchmarks/quality.py --folder data --without-squad FILE --out benchmarks/results/quality-h200.json

Every job is one `kvrag eval quality`; on each GPU there are as many at a time as `--jobs` says. `data` holds
`squad_dev.json.gz`, `multihop.jsonl.gz` and `mtrag.jsonl.gz`; jobs whose file is missing are left out and named. The
file is written after every job. One that is there already is completed: jobs of which it has a row for every method are
not done again, so delete it when the adapter is another one.
"""

import argparse
import copy
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

SQUAD, MULTIHOP, MTRAG = "squad_dev.json.gz", "multihop.jsonl.gz", "mtrag.jsonl.gz"

METHODS = ["kv-packet", "kv-packet:confidence=0.4", "kv-packet:top_n=2", "kv-packet:top_n=4"]
METHODS += ["no-recompute", "full-recompute"]
SHIPPED = [
    [SQUAD, "--passages", "4", "--limit", "5665"],  # as long as all others together
    [SQUAD, "--passages", "8"],
    ["biography", "--passages", "8"],
    ["needle", "--passages", "8"],
    [MULTIHOP, "--passages", "10"],
    [SQUAD, "--passages", "4", "--template", "xml"],
    [MTRAG, "--passages", "4"],
]
WITHOUT_SQUAD = [
    [SQUAD, "--passages", "4", "--limit", "500"],
    [SQUAD, "--passages", "8", "--limit", "500"],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the files of questions")
    parser.add_argument("--without-squad", type=Path, help="an adapter that was trained on everything but SQuAD")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch-tokens", default="200000")
    parser.add_argument("--jobs", type=int, default=2, help="at a time on each GPU")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    parts, jobs = [], []
    for part, (source, *options) in [("", job) for job in SHIPPED] + [("without_squad", job) for job in WITHOUT_SQUAD]:
        file = args.folder / source
        if part and args.without_squad is None:
            continue
        if "." in source and not file.exists():
            sys.stderr.write(f"left out: {source}, which is not in {args.folder}\n")
            continue
        if done(known if not part else known.get(part, {}), source, options):
            continue
        adapter = ["--adapter", str(args.without_squad)] if part else []
        parts.append(part)
        jobs.append(["--data", str(file) if "." in source else source, *options, *adapter])
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(jobs)):
        waiting.put(number)
    found: dict[int, dict] = {}
    lock = threading.Lock()

    def keep(number: int, result: dict) -> None:
        with lock:
            found[number] = result
            args.out.write_text(json.dumps(merged(known, found, parts), indent=1) + "\n")

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",") if torch.cuda.is_available() else [None]
    threads = [threading.Thread(target=work, args=(gpu, jobs, waiting, args, keep)) for gpu in gpus * args.jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def done(report: dict, source: str, options: list[str]) -> bool:
    """Whether a report has a job's rows."""
    wanted = {"--template": "llama-index-compact"} | dict(zip(options[::2], options[1::2], strict=True))
    job = (source.split(".")[0], wanted["--template"], int(wanted["--passages"]))
    return {row["method"] for row in report.get("rows", []) if job_of(row) == job} >= set(METHODS)


def job_of(row: dict) -> tuple[str, str, int]:
    """What a row was measured on."""
    return row["dataset"], row["template"], row["passages"]


def merged(known: dict, found: dict[int, dict], parts: list[str]) -> dict:
    """What a file said, and the reports of some jobs, whose rows replace earlier ones; the newest has the last word."""
    report = copy.deepcopy(known)
    for number in sorted(found):
        where = report.setdefault(parts[number], {}) if parts[number] else report
        again = {job_of(row) for row in found[number]["rows"]}
        kept = [row for row in where.get("rows", []) if job_of(row) not in again]
        fresh = [row | {"date": found[number]["date"]} for row in found[number]["rows"]]
        where |= found[number] | {"rows": kept + fresh}
    return report


def work(
    gpu: str | None,
    jobs: list[list[str]],
    waiting: "queue.SimpleQueue[int]",
    args: argparse.Namespace,
    keep: Callable[[int, dict], None],
) -> None:
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs)), **os.environ}
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    while True:
        try:
            number = waiting.get_nowait()
        except queue.Empty:
            return
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "quality.json"
            command = [sys.executable, "-m", "kvrag", "eval", "quality", "--model", args.model, *jobs[number]]
            command += ["--methods", ",".join(METHODS), "--batch-tokens", args.batch_tokens, "--out", str(out)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            sys.stdout.write(done.stdout)
            if done.returncode:
                sys.stderr.write(f"failed: {' '.join(jobs[number])}\n{done.stderr}\n")
                continue
            keep(number, json.loads(out.read_text()))


if __name__ == "__main__":
    main()
