"""What storing packets in fewer bytes costs: size, speed, and answers.

    python benchmarks/codecs.py --data squad_dev.json.gz --limit 40 --out benchmarks/results/codecs-cpu.json

`--jobs` processes take a few questions at a time and answer them by full recompute and, through the engine, with
packets of every codec; the file is written after each of them. `below_raw` is the F1 that a codec loses to `raw` on the
same questions, with its 95 % paired bootstrap interval. Sizes and speeds are those of one layer of random numbers of
Llama-3.1-8B's shape, 512 tokens, on one thread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kvrag import PacketEngine, PacketStore
from kvrag.cli.eval import load_set
from kvrag.cli.prompts import find_template
from kvrag.evaluation.cases import Case, Cases, Window, make_cases
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.evaluation.metrics import bootstrap_mean
from kvrag.evaluation.quality import FULL, Score, compare
from kvrag.evaluation.report import Setup, write_atomically
from kvrag.model import LanguageModel
from kvrag.progress import progress_bar
from kvrag.store.codecs import CODECS
from kvrag.strategies import FullRecompute, KVPacket

SHAPE = (2, 8, 512, 128)
TOKENS = 24
SEED = 0
AT_A_TIME = 8  # questions
ROOM = 1 << 30  # bytes of packets that a process keeps on disk
FULLY, PACKETS = FullRecompute(segmented=True), KVPacket()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="biography", help="a file of questions, or a generated domain")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    speeds = [speed(name) for name in CODECS]
    with open_engine(args.model, "raw") as engine:
        questions, template = load_set(args.data, args.limit, SEED), find_template("llama-index-compact")
        window = Window(engine.model, [FULLY, PACKETS], engine.adapter, TOKENS)
        cases = make_cases(questions, args.passages, template, engine.model, window, seed=SEED, limit=args.limit)
        setup = asdict(Setup.of(engine))
        del setup["codec"]
    report: dict[str, Any] = setup | {"seed": SEED, "max_new_tokens": TOKENS, "codecs": speeds}
    slices = [cases.cases[first : first + AT_A_TIME] for first in range(0, len(cases.cases), AT_A_TIME)]
    found: dict[str, list[Score]] = {name: [] for name in (FULL, *CODECS)}
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(args.jobs, spawn, initializer=begin, initargs=(args.model, args.jobs)) as pool,
        progress_bar("answering", len(slices)) as advance,
    ):
        for scores in pool.map(answered, slices):
            for name in found:
                found[name] += scores[name]
            report["quality"] = [row(name, cases, found) for name in found]
            write_atomically(args.out, json.dumps(report, indent=1) + "\n")
            advance(1)
    for each in report["quality"]:
        spread = f"{each['below_raw']:.2f} ({each['below_raw_low']:.2f} to {each['below_raw_high']:.2f})"
        print(f"{each['codec'] or FULL:15} n {each['n']}  F1 {each['f1']:.2f}  below raw {spread}  KL {each['kl']:.4f}")


def open_engine(model: str | LanguageModel, codec: str) -> PacketEngine:
    """With a store of its own, whose packets come from disk, as they are stored."""
    closing = ExitStack()
    store = PacketStore(closing.enter_context(TemporaryDirectory(prefix="kvrag-codecs-")), memory_bytes=0)
    _STORES.append(closing)
    closing.enter_context(store)
    opening = PacketEngine.from_pretrained if isinstance(model, str) else PacketEngine
    return opening(model, store=store, codec=codec, computed_bytes=0, device_memory=ROOM, loading="load")


_STORES: list[ExitStack] = []  # as long as the process lives
_ANSWERERS: dict[str, EngineAnswerer] = {}


def begin(model: str, jobs: int) -> None:
    """Open an engine for every codec; they share the model."""
    if jobs > 1:
        torch.set_num_threads(1)
    first = open_engine(model, "raw")
    for name in CODECS:
        engine = first if name == "raw" else open_engine(first.model, name)
        _ANSWERERS[name] = EngineAnswerer(engine, TOKENS, room=ROOM)


def answered(cases: Sequence[Case]) -> dict[str, list[Score]]:
    """Scores of full recompute and of every codec."""
    full = _ANSWERERS["raw"].answer(cases, FULLY)
    given = [each.token_ids for each in full]
    by_name = {FULL: full} | {name: by.answer(cases, PACKETS, given) for name, by in _ANSWERERS.items()}
    return {name: list(map(compare, cases, answers, full)) for name, answers in by_name.items()}


def row(name: str, cases: Cases, found: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """What all questions say of a codec, or of full recompute."""
    scores = found[name]
    f1 = bootstrap_mean([score.f1 for score in scores], seed=SEED)
    below = bootstrap_mean([raw.f1 - score.f1 for raw, score in zip(found["raw"], scores, strict=True)], seed=SEED)
    told = {"codec": None, "method": FULL} if name == FULL else {"codec": name, "method": PACKETS.name}
    told |= {"dataset": cases.dataset, "template": cases.template, "passages": cases.passages, "n": len(scores)}
    numbers = {"f1": f1.value, "f1_low": f1.low, "f1_high": f1.high}
    numbers |= {"below_raw": below.value, "below_raw_low": below.low, "below_raw_high": below.high}
    for column in ("em", "contains", "kl", "first", "computed_tokens", "prompt_tokens"):
        numbers[column] = statistics.fmean(getattr(score, column) for score in scores)
    numbers["first_token_agreement"] = numbers.pop("first")
    return told | {column: round(value, 4) for column, value in numbers.items()}


def speed(name: str) -> dict[str, Any]:
    """Of a codec on one thread."""
    torch.set_num_threads(1)
    codec = CODECS[name]
    layer = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()
    stored, again = codec.encode(layer), torch.empty_like(layer)
    return {
        "codec": name,
        "bytes_of_raw": round(stored.numel() / layer.nbytes, 3),
        "encode_gbps": rate(partial(codec.encode, layer), layer.nbytes),
        "decode_gbps": rate(partial(codec.decode, stored, again), layer.nbytes),
    }


def rate(call: Callable[[], object], nbytes: int) -> float:
    """GB a second."""
    times = []
    for _ in range(9):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return round(nbytes / statistics.median(times) / 1e9, 2)


if __name__ == "__main__":
    main()
