"""Where the time of a recorded pass goes: on the host, between kernels, and in them; with attention and without.

    python benchmarks/pass_profile.py --out benchmarks/results/pass-profile-h200.json

Needs a GPU. The pass is that of `kvrag bench ttft --graphs compiled`: a question over packets that are on the device.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

import torch
from kvrag_kernels.packet_attention import device as kernels
from kvrag_kernels.packet_attention.operator import attend_to_work
from torch.profiler import ProfilerActivity, profile

from kvrag.attach import ComputedStates, DevicePool
from kvrag.bench import measure_bandwidth, open_geometry
from kvrag.bench.prompts import RandomPrompt
from kvrag.bench.timing import median_ms
from kvrag.model import LanguageModel
from kvrag.plan import plan_lane

RUNS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--context", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--question", type=int, default=32)
    parser.add_argument("--packet", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = open_geometry(args.model, "cuda", torch.bfloat16)
    bandwidth = measure_bandwidth(model.device)
    report = {
        "model": args.model,
        "device": torch.cuda.get_device_name(),
        "date": str(date.today()),
        "hbm_gbps": round(bandwidth.memory),
        "rows": [],
    }
    whole = kernels.DeviceWork.pass_layer
    for attends in (True, False):
        kernels.DeviceWork.pass_layer = whole if attends else without_attention
        torch._dynamo.reset()
        model.graphs = None
        model.record_passes(compiled=True)
        model.warm_up([args.question])
        for context in args.context if attends else args.context[:1]:
            prompt = RandomPrompt.draw(model, context, args.packet, args.question)
            pool = model.new_pool(prompt.nbytes + (1 << 20))
            with pool.hold(prompt.packets):
                pool.arrivals.wait_for_all()
                row = {"attention": attends, "context": context, "floor_ms": bandwidth.floor_ms(model, prompt.nbytes)}
                report["rows"].append(row | measure(model, prompt, pool))
            args.out.write_text(json.dumps(report, indent=1) + "\n")
            print({k: v for k, v in report["rows"][-1].items() if k != "kernels_us"})


def without_attention(self, query, key, value, layer, scaling):
    if torch.compiler.is_compiling():
        return attend_to_work(query, key, value, self.number, layer, scaling)
    return query.clone(memory_format=torch.contiguous_format)


def measure(model: LanguageModel, prompt: RandomPrompt, pool: DevicePool) -> dict:
    times: dict[str, list[float]] = defaultdict(list)

    def answer() -> None:
        begin = time.perf_counter()
        plan = plan_lane(model, prompt.prepared, ComputedStates(0), 1, pool)
        planned = time.perf_counter()
        logits = model.forward([plan.rows])
        launched = time.perf_counter()
        int(logits[0].argmax())
        end = time.perf_counter()
        plan.release()
        for name, ms in (
            ("plan_ms", planned - begin),
            ("launch_ms", launched - planned),
            ("wait_ms", end - launched),
            ("total_ms", end - begin),
        ):
            times[name].append(1e3 * ms)

    for _ in range(RUNS + 5):
        answer()
    assert model.graphs is not None
    graph = next(graph for (rows, _), graph in model.graphs._graphs.items() if rows >= len(prompt.question))
    replay = median_ms({"": graph.replay}, model.device, runs=RUNS)[""]
    found = {name: round(statistics.median(ms[5:]), 3) for name, ms in times.items()}
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        graph.replay()
        torch.cuda.synchronize()
    kernels_us: dict[str, list[float]] = defaultdict(list)
    end = idle = 0.0
    for event in sorted(recorded.events(), key=lambda event: event.time_range.start):
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels_us[event.name[:80]].append(event.time_range.elapsed_us())
            idle += max(0.0, event.time_range.start - (end or event.time_range.start))
            end = max(end, event.time_range.end)
    largest = sorted(kernels_us.items(), key=lambda item: -sum(item[1]))[:20]
    return found | {
        "replay_ms": round(replay, 3),
        "idle_ms": round(idle / 1e3, 3),
        "kernels_us": {name: [round(sum(us)), len(us)] for name, us in largest},
    }


if __name__ == "__main__":
    main()
