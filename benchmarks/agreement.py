"""Greedy answers of the demo model on a CPU, on a GPU kernel by kernel, and on a GPU from recorded passes.

    python benchmarks/agreement.py --out benchmarks/results/agreement-h200.json

The same packets serve all three. Where answers differ, the file says at which token, and by how much the CPU preferred
its own: two tokens whose logits are closer than bfloat16 can tell apart are a tie.
"""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

import torch

from kvrag import PacketEngine, PacketStore
from kvrag.cli.prompts import find_template
from kvrag.evaluation.answering import Answered
from kvrag.evaluation.cases import Window, make_cases
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.qa.generated import generate_questions
from kvrag.sources import open_model
from kvrag.strategies import KVPacket

TOKENS = 24
TIE = 2.0**-6
"""Of the higher logit: two steps of bfloat16 numbers, for each of the two ways has rounded them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    ways = {"cpu": ("cpu", False), "eager": (args.device, False), "graphed": (args.device, True)}
    found: dict[str, list[Answered]] = {}
    device_name = ""
    strategy = KVPacket()
    with tempfile.TemporaryDirectory() as folder, PacketStore(folder) as store:
        for way, (device, graphs) in ways.items():
            model = open_model("demo", device, "bfloat16")
            with PacketEngine(model, store=store, cuda_graphs=graphs) as engine:
                window = Window(model, [strategy], engine.adapter, TOKENS)
                sets = [generate_questions(name, args.prompts // 2, 1) for name in ("needle", "biography")]
                template = find_template("llama-index-compact")
                cases = [
                    case
                    for questions in sets
                    for case in make_cases(
                        questions, args.passages, template, model, window, limit=args.prompts // 2
                    ).cases
                ]
                found[way] = EngineAnswerer(engine, TOKENS).answer(cases, strategy)
                device_name = model.device_name
    pairs = [("cpu", "eager"), ("cpu", "graphed"), ("eager", "graphed")]
    report = {
        "model": "demo",
        "device": device_name,
        "dtype": "bfloat16",
        "date": str(date.today()),
        "prompts": len(found["cpu"]),
        "tokens": TOKENS,
        "tie": TIE,
        "pairs": [compare(a, b, found[a], found[b]) for a, b in pairs],
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for pair in report["pairs"]:
        print(f"{pair['a']} and {pair['b']}: {pair['equal']} equal, {pair['ties']} ties, {pair['other']} other")


def compare(a: str, b: str, first: list[Answered], second: list[Answered]) -> dict:
    """How many answers are equal, and where the others part."""
    divergences = []
    for number, (x, y) in enumerate(zip(first, second, strict=True)):
        if x.token_ids != y.token_ids:
            at = next(i for i, (s, t) in enumerate(zip(x.token_ids, y.token_ids, strict=False)) if s != t)
            logits = x.logits[at].float()
            margin = (logits[x.token_ids[at]] - logits[y.token_ids[at]]).item()
            tie = margin <= TIE * torch.maximum(*logits[[x.token_ids[at], y.token_ids[at]]].abs()).item()
            divergences.append(
                {"prompt": number, "token": at, "margin": round(margin, 4), "tie": tie, a: x.text, b: y.text}
            )
    ties = sum(d["tie"] for d in divergences)
    equal = len(first) - len(divergences)
    return {"a": a, "b": b, "equal": equal, "ties": ties, "other": len(divergences) - ties, "divergences": divergences}


if __name__ == "__main__":
    main()
