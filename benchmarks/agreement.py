"""Greedy answers of the demo model on a CPU, on a GPU kernel by kernel, and on a GPU from recorded passes.

    python benchmarks/agreement.py --out benchmarks/results/agreement-h200.json

The same packets serve all three. Where answers differ, the file says at which token, and by how much the CPU preferred
its own: two tokens whose logits are closer than bfloat16 can tell apart are a tie.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from kvrag import PacketEngine, PacketStore
from kvrag.cli.prompts import find_template
from kvrag.evaluation.answering import Answered
from kvrag.evaluation.cases import Case, Window, make_cases
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.qa.generated import generate_questions
from kvrag.sources import open_model
from kvrag.strategies import KVPacket

TOKENS = 24
HIGHEST = 16  # logits that are kept of every token
TIE = 2.0**-6
"""Of the higher logit: two steps of bfloat16 numbers, for each of the two ways has rounded them."""
STRATEGY = KVPacket()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--way", help="answer this way only, over the packets in --store")
    parser.add_argument("--store", type=Path)
    args = parser.parse_args()
    ways = {"cpu": ("cpu", False), "eager": (args.device, False), "graphed": (args.device, True)}
    if args.way:
        args.out.write_text(json.dumps(answer(args, *ways[args.way])))
        return
    with tempfile.TemporaryDirectory() as folder:
        with PacketStore(Path(folder, "packets")) as store, PacketEngine(_model("cpu"), store=store) as engine:
            engine.build([passage for case in cases(args, engine) for passage in case.passages], strategy=STRATEGY)
        running = []
        for way in ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--store", f"{folder}/packets"]
            running.append(subprocess.Popen([*command, "--out", f"{folder}/{way}.json"]))
        codes = [process.wait() for process in running]
        if any(codes):
            sys.exit("one of the ways failed")
        found = {way: json.loads(Path(folder, f"{way}.json").read_text()) for way in ways}
    pairs = [("cpu", "eager"), ("cpu", "graphed"), ("eager", "graphed")]
    report = {
        "model": "demo",
        "device": found["graphed"]["device"],
        "dtype": "bfloat16",
        "date": str(date.today()),
        "prompts": len(found["cpu"]["answers"]),
        "tokens": TOKENS,
        "tie": TIE,
        "pairs": [compare(a, b, found[a]["answers"], found[b]["answers"]) for a, b in pairs],
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for pair in report["pairs"]:
        print(f"{pair['a']} and {pair['b']}: {pair['equal']} equal, {pair['ties']} ties, {pair['other']} other")


def _model(device: str):
    return open_model("demo", device, "bfloat16")


def cases(args: argparse.Namespace, engine: PacketEngine) -> list[Case]:
    window = Window(engine.model, [STRATEGY], engine.adapter, TOKENS)
    template, half = find_template("llama-index-compact"), args.prompts // 2
    found: list[Case] = []
    for name in ("needle", "biography"):
        questions = generate_questions(name, half, 1)
        found += make_cases(questions, args.passages, template, engine.model, window, limit=half).cases
    return found


def answer(args: argparse.Namespace, device: str, graphs: bool) -> dict:
    with (
        PacketStore(args.store) as store,
        PacketEngine(_model(device), store=store, cuda_graphs=graphs) as engine,
    ):
        answerer = EngineAnswerer(engine, TOKENS)
        answered = [answerer.answer([case], STRATEGY)[0] for case in cases(args, engine)]
        return {"device": engine.model.device_name, "answers": [plain(each) for each in answered]}


def plain(answered: Answered) -> dict:
    """Tokens and text, and the highest logits before each token by their tokens."""
    values, tokens = answered.logits.float().topk(HIGHEST)
    logits = [dict(zip(map(str, t), v, strict=True)) for t, v in zip(tokens.tolist(), values.tolist(), strict=True)]
    return {"token_ids": list(answered.token_ids), "text": answered.text, "logits": logits}


def compare(a: str, b: str, first: list[dict], second: list[dict]) -> dict:
    """How many answers are equal, and where the others part."""
    divergences = []
    for number, (x, y) in enumerate(zip(first, second, strict=True)):
        if x["token_ids"] != y["token_ids"]:
            tokens = zip(x["token_ids"], y["token_ids"], strict=False)
            at = next(i for i, (s, t) in enumerate(tokens) if s != t)
            logits = x["logits"][at]
            chosen, other = (logits.get(str(each["token_ids"][at])) for each in (x, y))
            margin = None if other is None else chosen - other
            tie = margin is not None and margin <= TIE * max(abs(chosen), abs(other))
            shown = None if margin is None else round(margin, 4)
            divergences.append({"prompt": number, "token": at, "margin": shown, "tie": tie, a: x["text"], b: y["text"]})
    ties = sum(d["tie"] for d in divergences)
    equal = len(first) - len(divergences)
    return {"a": a, "b": b, "equal": equal, "ties": ties, "other": len(divergences) - ties, "divergences": divergences}


if __name__ == "__main__":
    main()
