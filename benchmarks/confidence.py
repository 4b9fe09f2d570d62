"""What an answer's first token tells about it, and what it gives to recompute prompts that leave the model in doubt.

    python benchmarks/confidence.py --data squad_dev.json.gz --passages 8 --limit 200 --out confidence-cpu.json

Every question is answered with packets and by full recompute over the same tokens: one by one, through the engine, by
`--jobs` processes, or with `--batch-tokens` many in one pass, which agrees and suits a GPU. `kv-packet:confidence=C`
gives the first answer where the first token's probability is at least C and the second one elsewhere, so all thresholds
follow from one run. `of_share` chooses them as a user would who may recompute a given share of the prompts: from one
half of the questions, for the other half. `at_random` is the loss where as many prompts are recomputed whatever their
first token. The file is written now and then; a run that was ended goes on, and other data sets are added to those that
are in it. Beside it lies a chart of all of them.
"""

import argparse
import json
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kvrag import PacketEngine
from kvrag.cli.eval import load_set
from kvrag.cli.prompts import find_template
from kvrag.evaluation.answering import Answered, Answerer
from kvrag.evaluation.batched_answerer import BatchedAnswerer
from kvrag.evaluation.cases import Case, Window, in_batches, make_cases
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.evaluation.metrics import bootstrap_mean
from kvrag.evaluation.quality import compare
from kvrag.evaluation.report import Setup, write_atomically
from kvrag.plotting import new_figure, save_figure
from kvrag.progress import progress_bar
from kvrag.strategies import FullRecompute, KVPacket

TOKENS = 24
SEED = 0
ROOM = 1 << 30  # bytes of packets that a process keeps
AT_ONCE = 4  # questions that a process answers before the file is written
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SHARES = (0.1, 0.2, 0.3, 0.5)
FULLY, PACKETS = FullRecompute(segmented=True), KVPacket()

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of questions, or a generated set")
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--batch-tokens", type=int, help="rows in one pass, instead of prompts one by one")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    engine = opened(args.model)
    window = Window(engine.model, [FULLY, PACKETS], engine.adapter, TOKENS)
    template = find_template("llama-index-compact")
    questions = load_set(args.data, args.limit, SEED)
    cases = make_cases(questions, args.passages, template, engine.model, window, seed=SEED, limit=args.limit)

    setup = asdict(Setup.of(engine)) | {"seed": SEED, "max_new_tokens": TOKENS}
    setup["backend"] = "batched" if args.batch_tokens else "engine"
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else setup | {"sets": []}
    if other := [name for name, value in setup.items() if name != "date" and report.get(name) != value]:
        raise SystemExit(f"{args.out} was measured with another {other[0]}; choose another file")
    sets = report["sets"]
    which = {"dataset": cases.dataset, "template": cases.template, "passages": cases.passages}
    known = [each for each in sets if which.items() <= each.items()]
    if not known:
        sets.append(which | {"questions": []})
        known = sets[-1:]
    records: list[Record] = known[0]["questions"]
    if [record["question"] for record in records] != [case.question for case in cases.cases[: len(records)]]:
        raise SystemExit(f"{args.out} has answers to other questions of {cases.dataset}; choose another file")
    left = cases.cases[len(records) :]
    with ExitStack() as stack:
        if args.batch_tokens:
            many = BatchedAnswerer(engine.model, engine.adapter, TOKENS)
            found = (scored(many, batch) for batch in in_batches(left, args.batch_tokens))
        else:
            begun = {"initializer": begin, "initargs": (args.model, args.jobs)}
            pool = stack.enter_context(ProcessPoolExecutor(args.jobs, get_context("spawn"), **begun))
            found = pool.map(scored_alone, [left[i : i + AT_ONCE] for i in range(0, len(left), AT_ONCE)])
        advance = stack.enter_context(progress_bar("answering", len(left)))
        for fresh in found:
            records += fresh
            known[0] |= summary(records)
            write_atomically(args.out, json.dumps(report, indent=1) + "\n")
            advance(len(fresh))
    show(known[0])
    draw(report, args.out.with_suffix(".png"))


_KEPT: list[ExitStack] = []  # as long as the process lives
_ANSWERERS: list[EngineAnswerer] = []


def opened(model: str) -> PacketEngine:
    """An engine with a store of its own."""
    _KEPT.append(ExitStack())
    folder = _KEPT[-1].enter_context(TemporaryDirectory(prefix="kvrag-confidence-"))
    return _KEPT[-1].enter_context(PacketEngine.from_pretrained(model, store=folder))


def begin(model: str, jobs: int) -> None:
    """What a process needs before its first question."""
    if jobs > 1:
        torch.set_num_threads(1)
    _ANSWERERS.append(EngineAnswerer(opened(model), TOKENS, room=ROOM))


def scored_alone(cases: Sequence[Case]) -> list[Record]:
    """What became of some questions, answered by a process of many."""
    return scored(_ANSWERERS[0], cases)


def scored(answerer: Answerer, cases: Sequence[Case]) -> list[Record]:
    """What became of some questions."""
    full = answerer.answer(cases, FULLY)
    found = answerer.answer(cases, PACKETS, [each.token_ids for each in full])
    return list(map(record_of, cases, found, full))


def record_of(case: Case, found: Answered, full: Answered) -> Record:
    """What became of one question."""
    said, reference = compare(case, found, full), compare(case, full, full)
    probabilities = found.logits[0].float().softmax(-1)
    first, second = probabilities.topk(2).values.tolist()
    entropy = float(torch.special.entr(probabilities).sum())
    return {
        "question": case.question,
        "probability": round(first, 5),
        "second": round(second, 5),
        "entropy": round(entropy, 5),
        "f1": round(said.f1, 3),
        "f1_full": round(reference.f1, 3),
        "kl": round(said.kl, 5),
        "first": int(said.first),
        "computed": said.computed_tokens,
        "prompt": reference.prompt_tokens,
    }


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Every threshold, on all questions, and thresholds for shares of prompts, chosen on the other half."""
    order = list(range(len(records)))
    random.Random(SEED).shuffle(order)
    halves = [[records[i] for i in order[::2]], [records[i] for i in order[1::2]]]
    return {
        "n": len(records),
        "full_f1": round(fmean(record["f1_full"] for record in records), 3),
        "thresholds": [{"confidence": at} | outcome([(record, at) for record in records]) for at in THRESHOLDS],
        "of_share": [
            {"share_allowed": share}
            | outcome([(r, at) for a, b in (halves, halves[::-1]) for at in [quantile(a, share)] for r in b])
            for share in SHARES
            if all(halves)
        ],
    }


def quantile(records: Sequence[Record], share: float) -> float:
    """The threshold below which that share of the first tokens is."""
    values = sorted(record["probability"] for record in records)
    return values[min(round(share * len(values)), len(values) - 1)]


def outcome(decided: Sequence[tuple[Record, float]]) -> dict[str, float]:
    """Of questions with the confidence that each has to reach."""
    again = [record["probability"] < least for record, least in decided]
    records = [record for record, _ in decided]
    share = fmean(again)
    loss = bootstrap_mean(
        [0.0 if a else r["f1_full"] - r["f1"] for a, r in zip(again, records, strict=True)], seed=SEED
    )
    numbers = {
        "share": share,
        "f1": fmean(r["f1_full"] if a else r["f1"] for a, r in zip(again, records, strict=True)),
        "below_full": loss.value,
        "below_full_low": loss.low,
        "below_full_high": loss.high,
        "at_random": (1 - share) * fmean(r["f1_full"] - r["f1"] for r in records),
        "kl": fmean(0.0 if a else r["kl"] for a, r in zip(again, records, strict=True)),
        "first_token_agreement": fmean(1.0 if a else r["first"] for a, r in zip(again, records, strict=True)),
        "computed_tokens": fmean(r["computed"] + a * r["prompt"] for a, r in zip(again, records, strict=True)),
    }
    return {name: round(value, 4) for name, value in numbers.items()}


def show(report: dict[str, Any]) -> None:
    """A line each threshold."""
    print(
        f"{report['dataset']}, {report['passages']} passages, {report['n']} questions, full {report['full_f1']:.1f} F1"
    )
    for row in [*report["thresholds"], *report["of_share"]]:
        name = f"confidence {row['confidence']}" if "confidence" in row else f"share {row['share_allowed']}"
        spread = f"{row['below_full']:.2f} ({row['below_full_low']:.2f} to {row['below_full_high']:.2f})"
        print(
            f"{name:16} recomputed {row['share']:.0%}  F1 {row['f1']:.1f}  below full {spread}, at random "
            f"{row['at_random']:.2f}  KL {row['kl']:.4f}  first {row['first_token_agreement']:.1%}"
        )


def draw(report: dict[str, Any], path: Path) -> None:
    """Agreement, divergence and F1 against the share of the prompts that are recomputed; dotted: whichever prompts."""
    figure = new_figure(13, 4)
    panels = figure.subplots(1, 3, sharex=True)
    labels = ("equal first tokens [%]", "KL from full recompute [nats per token]", "F1 below full recompute")
    for number, one in enumerate(report["sets"]):
        points = [outcome([(q, at / 100) for q in one["questions"]]) for at in range(0, 101, 5)]
        name = f"{one['dataset']}, {one['passages']} passages, {one['n']} questions"
        none = points[0]
        columns = (
            ([100 * point["first_token_agreement"] for point in points], 100 * none["first_token_agreement"], 100),
            ([point["kl"] for point in points], none["kl"], 0),
            ([point["below_full"] for point in points], none["below_full"], 0),
        )
        for panel, label, (values, begin, end) in zip(panels, labels, columns, strict=True):
            panel.plot([100 * point["share"] for point in points], values, ".-", color=f"C{number}", label=name)
            panel.plot([0, 100], [begin, end], ":", color=f"C{number}", linewidth=1)
            panel.set(xlabel="prompts recomputed [%]", ylabel=label)
    setup = (
        f"{report['model']} ({report['dtype']} on {report['device']}), adapter {report['adapter']}, {report['date']}"
    )
    figure.suptitle(f"kv-packet:confidence=C, {setup}", x=0.01, ha="left", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
