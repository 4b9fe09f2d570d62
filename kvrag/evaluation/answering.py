"""Who answers the cases, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from kvrag.evaluation.cases import Case
from kvrag.strategies import Strategy

__all__ = ["Answered", "Answerer"]


@dataclass(frozen=True, eq=False)
class Answered:
    """A greedy answer, and what the model thought of a given one.

    Attributes:
        token_ids: of the answer, an end token included; at least one.
        text: of the answer, without the end token.
        logits: `[n, vocab]` that predict each token of the given answer, or of the own one where none was given; large,
            so whoever gets them scores them and lets them go.
        prompt_tokens: rows of the prompt.
        computed: rows that went through the model before the first token; where a method computes some rows in some
            layers only, their mean over the layers; where a prompt was answered twice, the rows of both times.
        fell_back: whether it was answered once more, since the first token was in doubt.
    """

    token_ids: tuple[int, ...]
    text: str
    logits: torch.Tensor
    prompt_tokens: int
    computed: float
    fell_back: bool = False


class Answerer(Protocol):
    """Answers cases by a strategy: one way of running them, which has to agree with every other way."""

    def answer(
        self, cases: Sequence[Case], strategy: Strategy, given: Sequence[Sequence[int]] | None = None
    ) -> list[Answered]:
        """Answer cases greedily, up to a stop token of the model.

        Args:
            cases: as many as fit into memory together.
            strategy: how to treat their passages.
            given: of each case the tokens of an answer that are to be predicted one by one, an end token included.
        """
        ...
