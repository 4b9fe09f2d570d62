"""What a minute of learning from a store does for an adapter that never saw its domain, into one file.

    python benchmarks/new_domain.py squad_dev.json.gz --adapter FILE --out benchmarks/results/new-domain-h200.json

The file's passages are built into a store. The adapter is measured on the file's questions before and after `kvrag
train adapter --from` that store, which sees the passages and what the model itself asks about them, and never the
file's questions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kvrag import PacketEngine, PacketStore
from kvrag.evaluation.report import write_atomically
from kvrag.qa import load_questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="questions with passages that the adapter never saw")
    parser.add_argument("--adapter", type=Path, required=True, help="to begin with")
    parser.add_argument("--passages", default="4,8", help="of a prompt, with commas between")
    parser.add_argument("--limit", default="1000", help="questions to measure with")
    parser.add_argument("--texts", type=int, default=2000, help="passages to build, at most")
    parser.add_argument("--steps", default="200", help="of 4 prompts, to learn in")
    parser.add_argument("--author", default="demo-base", help="asks about the passages")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch-tokens", default="300000")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="kvrag-domain-") as name:
        folder = Path(name)
        texts = [text for topic in load_questions(str(args.data)).topics for text in topic.passages]
        with (
            PacketStore(folder / "store") as store,
            PacketEngine.from_pretrained(args.model, store=store, adapter=args.adapter) as engine,
        ):
            built = engine.build(texts[: args.texts])
        report: dict[str, Any] = {"data": args.data.name, "chunks": built.built}
        report["build_s"] = round(built.seconds, 1)
        report["before"] = measured(args, args.adapter, folder)
        report |= {name: report["before"][name] for name in ("model", "device", "dtype", "date")}
        write_atomically(args.out, json.dumps(report, indent=2) + "\n")

        options = ["--from", folder / "store", "--init", args.adapter, "--author", args.author, "--model", args.model]
        options += ["--answers", "given", "--contexts", "4", "--questions", "10", "--micro-tokens", "60000"]
        options += ["--steps", args.steps, "--evaluate-every", args.steps, "--out", folder / "run"]
        begin = time.perf_counter()
        kvrag("train", "adapter", *options)
        whole = time.perf_counter() - begin
        run = json.loads((folder / "run" / "run.json").read_text())
        report["training"] = {
            "steps": run["steps_done"],
            "questions": run["data"]["stored"]["questions"],
            "training_s": run["seconds"],
            "whole_command_s": round(whole, 1),
        }
        report["after"] = measured(args, folder / "run" / "adapter.safetensors", folder)
    write_atomically(args.out, json.dumps(report, indent=2) + "\n")
    for when in ("before", "after"):
        for row in report[when]["rows"]:
            gap = "-" if row["gap_closed"] is None else f"{row['gap_closed']:.2f}"
            print(f"{when:7}{row['passages']:3} {row['method']:24} F1 {row['f1']:.1f}  gap {gap}  KL {row['kl']:.4f}")
    print(report["training"])


def measured(args: argparse.Namespace, adapter: Path, folder: Path) -> dict[str, Any]:
    """What `kvrag eval quality` reports for every number of passages."""
    options: list[object] = ["--data", args.data, "--limit", args.limit, "--model", args.model, "--adapter", adapter]
    for passages in args.passages.split(","):
        options += ["--passages", passages]
    kvrag("eval", "quality", *options, "--batch-tokens", args.batch_tokens, "--out", folder / "quality.json")
    return json.loads((folder / "quality.json").read_text())


def kvrag(*options: object) -> None:
    """The command in a process of its own: it gives its memory back."""
    subprocess.run([sys.executable, "-m", "kvrag", *map(str, options)], check=True)


if __name__ == "__main__":
    main()
