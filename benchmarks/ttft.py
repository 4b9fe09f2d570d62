"""Time to first token and per token on this machine, into benchmarks/results/ttft-cpu.json.

Kinds of run take turns, so that a machine that slows down slows all of them. The timer of `first_token` rows starts
with the prompt string and ends with the first token id. `forward` rows compare attention over packets with attention
over one contiguous ready cache and with transformers over a ready DynamicCache: same rows, same positions.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache

from kvrag import PacketEngine, PacketStore
from kvrag.attach import ComputedStates, Extent
from kvrag.bench.baselines import over_cache
from kvrag.demo.collection import load_questions, load_sections
from kvrag.model import LanguageModel, Rows
from kvrag.plan import plan_lane
from kvrag.sources import open_model

RESULTS = Path(__file__).parent / "results"
SYSTEM = "You answer from the documents you are given, and from nothing else."


def prompt_of(texts, question):
    context = "\n\n".join(texts)
    user = (
        f"Context information is below.\n---------------------\n{context}\n---------------------\nQuery: {question}\n"
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user + "Answer: "}]


def milliseconds(function) -> float:
    begin = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - begin)


def interleaved(functions: dict, runs: int) -> dict[str, float]:
    """Median milliseconds of each, after one run that does not count."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for number in range(runs):
        order = list(functions) if number % 2 else list(reversed(functions))
        for name in order:
            times[name].append(milliseconds(functions[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def first_token(engine: PacketEngine, cold: PacketEngine, chunks: int, runs: int) -> list[dict]:
    """From prompt string to first token id: packets in host memory, packets on disk, full recompute."""
    sections, questions = load_sections(), load_questions()
    kinds = {
        ("packets", "memory"): (engine, "kv-packet"),
        ("packets", "disk"): (cold, "kv-packet"),
        ("full-recompute", "-"): (engine, "full-recompute"),
    }
    times = {kind: [] for kind in kinds}
    usages = {}
    for number in range(runs + 1):
        start = (number * chunks) % (len(sections) - chunks)
        texts = [section.text for section in sections[start : start + chunks]]
        prompt = prompt_of(texts, questions[number % len(questions)].question)
        engine.prefetch(texts).release()
        for kind in list(kinds) if number % 2 else list(reversed(kinds)):
            asked, strategy = kinds[kind]
            answer = asked.generate(prompt, strategy=strategy, max_new_tokens=1)
            if number:  # the first round warms up, and computes the text before the first packet
                times[kind].append(answer.timings.first_token_ms)
                usages[kind] = answer.usage
    full = times["full-recompute", "-"]
    return [
        {
            "measure": "first_token",
            "method": method,
            "tier": tier,
            "chunks": chunks,
            "prompt_tokens": usages[method, tier].prompt_tokens,
            "computed_tokens": usages[method, tier].computed_tokens,
            "ms": round(statistics.median(values), 2),
            "full_over_this": round(statistics.median(f / v for f, v in zip(full, values, strict=True)), 2),
            "runs": len(values),
        }
        for (method, tier), values in times.items()
    ]


def forward(engine: PacketEngine, chunks: int, runs: int) -> list[dict]:
    """The prompt's computed rows, and one more token, over packets, one contiguous cache, and a DynamicCache."""
    model: LanguageModel = engine.model
    texts = [section.text for section in load_sections()[:chunks]]
    prepared = engine.prepare(prompt_of(texts, load_questions()[0].question))
    states = ComputedStates(64 << 20)
    head = prepared.segments[0]
    warm = plan_lane(model, prepared, states, 1)
    model.forward([warm.rows])
    states.keep(prepared.chain, list(head.ids), warm.lane.own(0, len(head.ids)).clone())
    plan = plan_lane(model, prepared, states, 1)
    blocks = [extent.kv for extent in plan.lane.extents]
    held = torch.cat(blocks, dim=3)
    ids, positions = list(plan.rows.ids), list(plan.rows.positions)
    cache = DynamicCache()
    for layer in range(model.geometry.layers):
        cache.update(held[layer, 0][None], held[layer, 1][None], layer)
    contiguous = Extent(held, 1, 0)  # turned by one position: the same work as a packet's

    def over_packets():
        model.forward([plan_lane(model, prepared, states, 1).rows])

    def over_one_cache(rows=ids, at=positions):
        lane = model.new_lane(len(rows) + 1)
        lane.attach([contiguous])
        model.forward([Rows(lane, rows, at)])

    def over_dynamic_cache(rows=ids, at=positions):
        with torch.inference_mode():
            mask = torch.ones(1, held.shape[3] + len(rows), dtype=torch.long)
            over_cache(
                model.transformers_model,
                cache,
                input_ids=torch.tensor([rows]),
                position_ids=torch.tensor([at]),
                attention_mask=mask,
                logits_to_keep=1,
            )
        cache.crop(-len(rows))

    decoding = plan_lane(model, prepared, states, 64)
    model.forward([decoding.rows])
    grown = decoding.lane.length

    def one_token_over_packets():
        model.forward([Rows(decoding.lane, [5], [prepared.end])])
        decoding.lane.length = grown

    kinds = {
        "prompt rows": (len(ids), over_packets, over_one_cache, over_dynamic_cache),
        "one token": (
            1,
            one_token_over_packets,
            lambda: over_one_cache([5], [prepared.end]),
            lambda: over_dynamic_cache([5], [prepared.end]),
        ),
    }
    rows = []
    for what, (count, packets, one, dynamic) in kinds.items():
        names = ("packets", "one contiguous cache", "transformers DynamicCache")
        medians = interleaved(dict(zip(names, (packets, one, dynamic), strict=True)), runs)
        for name, ms in medians.items():
            rows.append(
                {
                    "measure": f"forward, {what}",
                    "method": name,
                    "chunks": chunks,
                    "prompt_tokens": prepared.tokens,
                    "computed_tokens": count,
                    "ms": round(ms, 2),
                    "packets_over_this": round(medians["packets"] / ms, 3),
                    "runs": runs,
                }
            )
    whole = list(prepared.token_ids)

    def prefill():
        model.forward([Rows(model.new_lane(len(whole)), whole, range(len(whole)))])

    def transformers_prefill():
        with torch.inference_mode():
            model._model(torch.tensor([whole]), use_cache=True, logits_to_keep=1)

    for name, ms in interleaved({"kvrag": prefill, "transformers": transformers_prefill}, max(3, runs // 3)).items():
        row = {"measure": "forward, whole prompt", "method": name, "chunks": chunks, "prompt_tokens": len(whole)}
        rows.append(row | {"computed_tokens": len(whole), "ms": round(ms, 2)})
    return rows


def peak_memory(store: Path, kind: str) -> None:
    """Print the peak resident bytes of a process that did this and nothing else, and the packets' bytes."""
    model = open_model("demo", "cpu")
    packets = 0
    if kind == "bare":
        model.plain_forward(list(range(10, 60)), range(50))
    else:
        with PacketEngine(model, store=PacketStore(store)) as engine:
            texts = [section.text for section in load_sections()[:10]]
            prompt = prompt_of(texts, load_questions()[0].question)
            engine.generate(prompt, max_new_tokens=8)
            packets = sum(packet.nbytes for packet in engine.prepare(prompt).packets.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps({"peak": peak, "packets": packets}))


def memory(store: Path) -> dict:
    """Peak memory of answering over ten packets, beyond a process with the model and one bare forward."""
    peaks = {}
    for kind in ("bare", "answer"):
        command = [sys.executable, __file__, "--peak", kind, "--store", str(store)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[kind] = json.loads(out.stdout)
    extra = peaks["answer"]["peak"] - peaks["bare"]["peak"] - peaks["answer"]["packets"]
    return {
        "measure": "peak memory",
        "chunks": 10,
        "bare_mb": round(peaks["bare"]["peak"] / 1e6),
        "answer_mb": round(peaks["answer"]["peak"] / 1e6),
        "packets_mb": round(peaks["answer"]["packets"] / 1e6),
        "beyond_model_and_packets_mb": round(extra / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 5, 8, 10])
    parser.add_argument("--out", type=Path, default=RESULTS / "ttft-cpu.json")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--peak", choices=("bare", "answer"))
    arguments = parser.parse_args()
    if arguments.peak:
        return peak_memory(arguments.store, arguments.peak)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        engine = PacketEngine.from_pretrained("demo", store=folder, device="cpu")
        engine.build([section.text for section in load_sections()], progress=True)
        cold = PacketEngine(engine.model, store=PacketStore(folder, memory_bytes=0))
        for chunks in arguments.chunks:
            rows += first_token(engine, cold, chunks, arguments.runs)
            rows += forward(engine, chunks, arguments.runs)
        assert engine.adapter is not None
        name = f"demo (SmolLM2-135M-Instruct with its reader, adapter {engine.adapter.digest[:16]})"
        dtype = str(engine.model.dtype).removeprefix("torch.")
        cold.close()
        engine.close()
        rows.append(memory(Path(folder)))
    report = {
        "date": str(date.today()),
        "device": f"cpu, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "dtype": dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": [{"model": name, **row} for row in rows],
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
