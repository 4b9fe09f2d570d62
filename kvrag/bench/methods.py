"""Time to first token of every reuse method on packets of random numbers, at the shape of a well-known model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from kvrag.adapter import Adapter, AdapterHeader
from kvrag.bench.prompts import RandomPrompt
from kvrag.bench.timing import median_ms
from kvrag.errors import SettingsError
from kvrag.evaluation.costs import Work, compute_first_token
from kvrag.model import LanguageModel
from kvrag.packet import Recipe
from kvrag.prepared import Prepared
from kvrag.strategies import Strategy

__all__ = ["TimeRow", "measure_method_times"]

_SOFT = {"header": 8, "trailer": 8}
_LINKS = {"kvlink": {"link": 5}}
"""Soft tokens of the adapters that the strategies are timed with: those of their papers."""


@dataclass(frozen=True)
class TimeRow:
    """One method on one prompt of random packets.

    Attributes:
        model: the shape, which has random weights.
        method: its name.
        packets, packet, question: packets, tokens of each, and tokens of the question.
        prompt_tokens: rows of the prompt.
        computed_tokens: rows that were computed.
        flops, bytes_loaded, bytes_per_token: as in `Costs`.
        ttft_ms: from the prompt's segments until the first token's id is known on the host; packets are in host memory,
            the median of runs that take turns with those of the other methods.
    """

    model: str
    method: str
    packets: int
    packet: int
    question: int
    prompt_tokens: int
    computed_tokens: float
    flops: float
    bytes_loaded: float
    bytes_per_token: float
    ttft_ms: float


def measure_method_times(
    model: LanguageModel,
    methods: Mapping[str, Strategy],
    *,
    packets: int,
    packet: int,
    question: int,
    runs: int,
) -> list[TimeRow]:
    """Time every method on one prompt, fastest first.

    Args:
        model: to run; its passes may have been recorded.
        methods: strategies by name.
        packets: attached in the prompt.
        packet: tokens of each.
        question: tokens of the question.
        runs: of each method, besides two that do not count.

    Raises:
        SettingsError: the prompt does not fit into the model's window, or a method falls back where answers are
            doubtful, as all of random weights are.
    """
    if doubting := [name for name, strategy in methods.items() if strategy.fallback is not None]:
        raise SettingsError(
            f"expected methods that take the same time for every answer, found {doubting[0]}, "
            "which falls back in doubt, and random weights are never sure"
        )
    by_recipe: dict[Recipe, RandomPrompt] = {}
    prepared: dict[str, Prepared] = {}
    for name, strategy in methods.items():
        fitted, adapter = strategy.fitted(model.framing), _adapter(model, strategy)
        recipe = fitted.recipe(adapter)
        if recipe not in by_recipe:
            by_recipe[recipe] = RandomPrompt.draw(model, packets * packet, packet, question, recipe)
        prepared[name] = by_recipe[recipe].prepared_by(fitted, adapter)
    longest = max(prompt.end for prompt in prepared.values())
    if longest > model.max_positions:
        raise SettingsError(f"expected at most {model.max_positions} tokens for {model.name}, found {longest}")
    most = max(prompt.nbytes for prompt in by_recipe.values())
    pool = model.new_pool(most + (1 << 20))
    works: dict[str, Work] = {}

    def answer(name: str) -> int:
        token, works[name] = compute_first_token(model, prepared[name], pool)
        return token

    def forget() -> None:
        if pool is not None:
            for prompt in by_recipe.values():
                for drawn in prompt.packets:
                    pool.discard(drawn.key)

    calls: dict[str, Callable[[], object]] = {name: lambda name=name: answer(name) for name in methods}
    times = median_ms(calls, model.device, runs=runs, before=forget)
    rows = [
        TimeRow(
            model=model.name,
            method=name,
            packets=packets,
            packet=packet,
            question=question,
            prompt_tokens=prepared[name].tokens,
            computed_tokens=works[name].rows,
            flops=works[name].flops(model),
            bytes_loaded=works[name].nbytes,
            bytes_per_token=round(works[name].nbytes / max(1, works[name].chunk_tokens), 1),
            ttft_ms=round(ms, 3),
        )
        for name, ms in times.items()
    ]
    return sorted(rows, key=lambda row: row.ttft_ms)


def _adapter(model: LanguageModel, strategy: Strategy) -> Adapter:
    """Random soft tokens; a writer costs nothing at question time."""
    shape = _LINKS.get(strategy.name, _SOFT)
    tensors = {name: torch.randn(count, model.hidden_size) * 0.02 for name, count in shape.items()}
    return Adapter(AdapterHeader(weights="", config=""), tensors)
