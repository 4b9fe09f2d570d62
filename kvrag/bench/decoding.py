"""Tokens per second of requests that share their packets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvrag.attach import ComputedStates
from kvrag.bench.bandwidth import Bandwidth
from kvrag.bench.prompts import RandomPrompt
from kvrag.bench.timing import median_ms
from kvrag.model import LanguageModel, Rows
from kvrag.plan import Plan, plan_lane

__all__ = ["DecodeRow", "measure_decoding"]


@dataclass(frozen=True)
class DecodeRow:
    """Requests that decode over the same packets, one token each a step.

    Attributes:
        requests: their number.
        context: tokens of the packets.
        packets: their number.
        recorded: whether the pass is a CUDA graph.
        step_ms: median, from the last tokens to the next ones on the host.
        floor_ms: what reading the weights and the packets once takes.
        times_floor: `step_ms` in floors.
        tokens_per_s: of all requests.
        packet_bytes: of keys and values in memory, whatever the number of requests.
    """

    requests: int
    context: int
    packets: int
    recorded: bool
    step_ms: float
    floor_ms: float
    times_floor: float
    tokens_per_s: float
    packet_bytes: int


def measure_decoding(
    model: LanguageModel,
    bandwidth: Bandwidth,
    *,
    context: int,
    requests: Sequence[int],
    packet: int,
    runs: int,
    advance: Callable[[], None] = lambda: None,
) -> list[DecodeRow]:
    """Measure steps of different numbers of requests over the same packets.

    Args:
        model: to run; where its passes were recorded, both ways are measured.
        bandwidth: of its device.
        context: tokens of the packets.
        requests: numbers of requests.
        packet: tokens of a packet.
        runs: steps of each.
        advance: hears of every number of requests.
    """
    prompt = RandomPrompt.draw(model, context, packet, 16)
    pool = model.new_pool(prompt.nbytes + (1 << 20))
    graphs = model.graphs
    rows: list[DecodeRow] = []
    for count in requests:
        plans = [plan_lane(model, prompt.prepared, ComputedStates(0), 4 * runs + 16, pool) for _ in range(count)]
        model.forward([plan.rows for plan in plans])
        for recorded in (False, True) if graphs is not None else (False,):
            model.graphs = graphs if recorded else None
            tokens = [0] * count

            def step(plans: list[Plan] = plans, tokens: list[int] = tokens) -> None:
                next_rows = [
                    Rows(plan.lane, [token], [prompt.context + plan.lane.length])
                    for plan, token in zip(plans, tokens, strict=True)
                ]
                tokens[:] = model.forward(next_rows).argmax(-1).tolist()

            ms = median_ms({"": step}, model.device, runs=runs)[""]
            floor = bandwidth.floor_ms(model, prompt.nbytes)
            kept = prompt.nbytes if pool is None else pool.nbytes
            rows.append(
                DecodeRow(
                    count,
                    prompt.context,
                    len(prompt.packets),
                    recorded,
                    round(ms, 3),
                    round(floor, 3),
                    round(ms / floor, 3),
                    round(1e3 * count / ms, 1),
                    kept,
                )
            )
        model.graphs = graphs
        for plan in plans:
            plan.release()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        advance()
    return rows
