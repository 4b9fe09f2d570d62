"""Time to first token over attached packets, beside what it replaces."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvrag.attach import ComputedStates, DevicePool
from kvrag.bench.bandwidth import Bandwidth
from kvrag.bench.baselines import copied_cache, full_prefill
from kvrag.bench.prompts import RandomPrompt
from kvrag.bench.timing import median_ms
from kvrag.model import LanguageModel
from kvrag.plan import plan_lane

__all__ = ["FirstTokenRow", "measure_first_token"]

FULL, COPIED, EAGER, GRAPHED = "full prefill", "copy and re-rotate", "zero-copy eager", "zero-copy graphed"


@dataclass(frozen=True)
class FirstTokenRow:
    """One way to a first token; times are medians.

    Attributes:
        method: its name.
        tier: where packets are when the prompt comes: "device" or "host"; "-" where there are none.
        context: tokens of the packets.
        question: tokens that are computed in any case.
        packets: their number.
        ttft_ms: from the prompt's token ids until the first token's id is known on the host.
        attach_ms: of it, on the host, until the pass is planned; 0 where nothing is attached.
        floor_ms: what reading the weights and the packets once takes.
        times_floor: `ttft_ms` in floors.
        speedup_over_full: full prefill's time in this one's.
    """

    method: str
    tier: str
    context: int
    question: int
    packets: int
    ttft_ms: float
    attach_ms: float
    floor_ms: float
    times_floor: float
    speedup_over_full: float


def measure_first_token(
    model: LanguageModel,
    bandwidth: Bandwidth,
    *,
    contexts: Sequence[int],
    question: int,
    packet: int,
    tiers: Sequence[str],
    runs: int,
    advance: Callable[[], None] = lambda: None,
) -> list[FirstTokenRow]:
    """Measure all methods at every context, and on a GPU the passes that are recorded as well.

    Args:
        model: to run; its passes may have been recorded.
        bandwidth: of its device.
        contexts: tokens of all packets of a prompt.
        question: rows of a question.
        packet: tokens of a packet.
        tiers: out of "device" and "host"; on a CPU they are the same.
        runs: of each method.
        advance: hears of every context.
    """
    rows: list[FirstTokenRow] = []
    for context in contexts:
        prompt = RandomPrompt.draw(model, context, packet, question)
        rows += _measure(prompt, bandwidth, tiers, runs)
        advance()
    return rows


def _measure(prompt: RandomPrompt, bandwidth: Bandwidth, tiers: Sequence[str], runs: int) -> list[FirstTokenRow]:
    model = prompt.model
    pool = model.new_pool(prompt.nbytes + (1 << 20))
    times = {(FULL, "-"): median_ms({FULL: lambda: full_prefill(prompt)}, model.device, runs=max(3, runs // 3))[FULL]}
    if "device" in tiers:
        held = None if pool is None else pool.hold(prompt.packets)
        if pool is not None:
            pool.arrivals.wait_for_all()
        blocks = [p.kv if held is None else held.slots[p.key].kv for p in prompt.packets]
        calls: dict[str, Callable[[], object]] = {COPIED: lambda: copied_cache(prompt, blocks)}
        calls |= _attaching(prompt, pool)
        for name, ms in median_ms(calls, model.device, runs=runs).items():
            times[name, "device"] = ms
        if held is not None:
            held.release()
    if "host" in tiers and pool is not None:

        def forget() -> None:
            for packet in prompt.packets:
                pool.discard(packet.key)

        for name, ms in median_ms(_attaching(prompt, pool), model.device, runs=runs, before=forget).items():
            times[name, "host"] = ms
    attach_ms = _attach_ms(prompt, pool, runs)
    return [
        _row(prompt, bandwidth, method, tier, ms, times[FULL, "-"], attach_ms) for (method, tier), ms in times.items()
    ]


def _attaching(prompt: RandomPrompt, pool: DevicePool | None) -> dict[str, Callable[[], object]]:
    """The engine's own way, with and without recorded passes."""
    model = prompt.model
    graphs = model.graphs

    def answer(recorded: bool) -> int:
        model.graphs = graphs if recorded else None
        try:
            plan = plan_lane(model, prompt.prepared, ComputedStates(0), 1, pool)
            token = int(model.forward([plan.rows])[0].argmax())
            plan.release()
            return token
        finally:
            model.graphs = graphs

    calls: dict[str, Callable[[], object]] = {EAGER: lambda: answer(False)}
    if graphs is not None:
        calls[GRAPHED] = lambda: answer(True)
    return calls


def _attach_ms(prompt: RandomPrompt, pool: DevicePool | None, runs: int) -> float:
    """Milliseconds on the host from the prompt until the kernels' work is on its way; packets are on the device."""
    model = prompt.model
    times: list[float] = []
    for _ in range(runs + 2):
        begin = time.perf_counter()
        plan = plan_lane(model, prompt.prepared, ComputedStates(0), 1, pool)
        with torch.inference_mode():
            model.passes.new([plan.lane], [len(prompt.question)])
        times.append(1e3 * (time.perf_counter() - begin))
        plan.release()
    return sorted(times[2:])[runs // 2]


def _row(
    prompt: RandomPrompt, bandwidth: Bandwidth, method: str, tier: str, ms: float, full_ms: float, attach_ms: float
) -> FirstTokenRow:
    attached = 0 if method == FULL else prompt.nbytes
    floor = bandwidth.floor_ms(prompt.model, attached, prompt.nbytes if tier == "host" else 0)
    return FirstTokenRow(
        method=method,
        tier=tier,
        context=prompt.context,
        question=len(prompt.question),
        packets=len(prompt.packets),
        ttft_ms=round(ms, 3),
        attach_ms=round(attach_ms, 4) if method in (EAGER, GRAPHED) else 0.0,
        floor_ms=round(floor, 3),
        times_floor=round(ms / floor, 3),
        speedup_over_full=round(full_ms / ms, 2),
    )
