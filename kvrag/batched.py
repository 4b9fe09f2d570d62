"""Many prompts at once through the model: what training differentiates, and what measures quality at scale."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from kvrag.adapter import Adapter
from kvrag.attach import PackedPass, PackedRanking, StepPass
from kvrag.model import LanguageModel
from kvrag.packed_rows import SOFT_PARTS, PackedRows
from kvrag.writer import Writer

__all__ = ["Generated", "compute_rows", "generate_greedily", "rank_packets", "soft_table", "writing"]


def soft_table(adapter: Adapter | None, device: torch.device) -> torch.Tensor | None:
    """The adapter's `SOFT_PARTS` behind each other, `[n, hidden]` in float32; None when it has none."""
    parts = [] if adapter is None else [adapter.soft(name) for name in SOFT_PARTS]
    parts = [part for part in parts if len(part)]
    return torch.cat(parts).to(device, torch.float32) if parts else None


def writing(model: LanguageModel, writer: Writer | None, rows: PackedRows) -> AbstractContextManager[None]:
    """While open, the writer acts on the rows of chunks; under gradient checkpointing, go backward inside."""
    return nullcontext() if writer is None else writer.active(model.linear_modules(), rows.span_rows)


def compute_rows(
    model: LanguageModel,
    rows: PackedRows,
    soft: torch.Tensor | None,
    wanted: torch.Tensor,
    *,
    keep: bool = False,
    ranking: PackedRanking | None = None,
) -> tuple[torch.Tensor, PackedPass]:
    """Logits `[n, vocab]` of the rows `wanted` [n], and the pass; gradients flow into `soft` `[n, hidden]`."""
    embeds = model.embed(rows.ids)
    if len(rows.soft_rows):
        assert soft is not None, "rows with soft tokens come from an adapter that has some"
        embeds = embeds.index_copy(0, rows.soft_rows, soft[rows.soft].to(embeds.dtype))
    current = PackedPass(rows.layout, keep=keep, ranking=ranking)
    return model.run(embeds, rows.positions, current, wanted), current


@torch.no_grad()
def rank_packets(
    model: LanguageModel, rows: PackedRows, soft: torch.Tensor | None, writer: Writer | None, asking: Sequence[int]
) -> list[list[float]]:
    """The attention that the last rows before each prompt's answer pay to its packets, as `PackedRanking.shares`.

    Args:
        model: to run on.
        rows: of prompts with one branch each.
        soft: of the adapter.
        writer: of the adapter.
        asking: of each prompt how many rows.
    """
    last = rows.last_reads[:, 0]
    ranking = PackedRanking(rows.layout, last, torch.tensor(asking, device=last.device), model.geometry.asking)
    with writing(model, writer, rows):
        compute_rows(model, rows, soft, rows.last_rows[:, 0], ranking=ranking)
    return ranking.shares()


@dataclass(frozen=True)
class Generated:
    """Greedy answers to packed prompts.

    Attributes:
        tokens: of every prompt's every branch, an end token included where one came.
        logits: `[steps, B, M, vocab]` that the tokens were taken from; empty unless they were to be kept.
        given: `[A, vocab]` that predict the answers which the rows came with.
    """

    tokens: list[list[list[int]]]
    logits: torch.Tensor
    given: torch.Tensor


@torch.no_grad()
def generate_greedily(
    model: LanguageModel,
    rows: PackedRows,
    soft: torch.Tensor | None,
    writer: Writer | None,
    max_new_tokens: int,
    *,
    keep_logits: bool = False,
) -> Generated:
    """The likeliest tokens behind every branch of every prompt.

    Args:
        model: to run on.
        rows: of prompts; answers that they come with are predicted too, and seen by no token generated here.
        soft: of the adapter.
        writer: of the adapter.
        max_new_tokens: at most so many a branch.
        keep_logits: of the tokens generated; they are large.
    """
    wanted = torch.cat([rows.last_rows.flatten(), rows.answer_rows])
    with writing(model, writer, rows):
        computed, current = compute_rows(model, rows, soft, wanted, keep=True)
    logits, given = computed.split([rows.last_rows.numel(), len(rows.answer_rows)])
    states = current.states(rows.last_reads, max_new_tokens)
    stops = torch.tensor(sorted(model.stop_ids), device=logits.device)
    positions, own = rows.ends.flatten(), torch.arange(rows.ends.numel(), device=logits.device)
    tokens, kept = [logits.argmax(-1)], [logits]
    ended = torch.isin(tokens[0], stops)
    while len(tokens) < max_new_tokens and not ended.all():
        step = StepPass(states)
        logits = model.run(model.embed(tokens[-1]), positions, step, own)
        step.commit()
        positions = positions + 1
        tokens.append(logits.argmax(-1))
        if keep_logits:
            kept.append(logits)
        ended |= torch.isin(tokens[-1], stops)
    columns = torch.stack(tokens, 1).tolist()
    cut = [_until_end(row, model.stop_ids) for row in columns]
    branches = rows.last_rows.shape[1]
    answers = [cut[first : first + branches] for first in range(0, len(cut), branches)]
    seen = torch.stack(kept).unflatten(1, rows.last_rows.shape) if keep_logits else logits.new_empty(0)
    return Generated(answers, seen, given)


def _until_end(tokens: list[int], stops: frozenset[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]
