"""Answers one case after the other, by the very parts that serve."""

from collections.abc import Sequence

import torch

from kvrag.attach import ComputedStates
from kvrag.engine import PacketEngine
from kvrag.evaluation.answering import Answered
from kvrag.evaluation.cases import Case
from kvrag.generate import TextStream
from kvrag.model import LanguageModel, Rows
from kvrag.plan import Prepared, plan_lane
from kvrag.strategies import Strategy

__all__ = ["EngineAnswerer"]


class EngineAnswerer:
    """Packets are built, found in the prompt, loaded and attached as for `PacketEngine.generate`.

    Nothing is reused from earlier prompts, so that every case costs what it costs. Passages without a packet, those of
    full recompute among them, are tokenised as the packets' are: all methods see the same tokens.

    Args:
        engine: to run on.
        max_new_tokens: of an answer.
        builds: whether to build packets that are missing; if not, their passages are computed as text.
        room: bytes of packets beyond which the engine's store is emptied, for a store that nobody else wants; None
            leaves everything there.
    """

    def __init__(
        self, engine: PacketEngine, max_new_tokens: int, *, builds: bool = True, room: int | None = None
    ) -> None:
        self._engine = engine
        self._max_new_tokens = max_new_tokens
        self._builds = builds
        self._room = room

    def answer(
        self, cases: Sequence[Case], strategy: Strategy, given: Sequence[Sequence[int]] | None = None
    ) -> list[Answered]:
        """As `Answerer.answer`.

        Raises:
            PromptTooLongError: a case does not fit into the window.
        """
        answers: list[Answered] = []
        for case, tokens in zip(cases, given or [None] * len(cases), strict=True):
            if self._builds and strategy.attaches:
                self._make_room()
                self._engine.build(case.passages, strategy=strategy, progress=False)
            prepared = self._engine.prepare(case.prompt, strategy=strategy, documents=case.passages)
            answers.append(self._engine.run(_answer, self._engine.model, prepared, tokens, self._max_new_tokens))
        return answers

    def _make_room(self) -> None:
        store = self._engine.store
        if self._room is not None and store.stat().bytes > self._room:
            for row in list(store.ls()):
                store.remove(row.key)


def _answer(model: LanguageModel, prepared: Prepared, given: Sequence[int] | None, limit: int) -> Answered:
    plan = plan_lane(model, prepared, ComputedStates(0), limit)

    def after(token: int, number: int) -> torch.Tensor:
        """Logits behind a token, the answer's `number`th."""
        return model.forward([Rows(plan.lane, [token], [prepared.end + number])])[0]

    own: list[int] = []
    logits = [model.forward([plan.rows])[0]]
    rows = plan.lane.length
    while True:
        own.append(int(logits[-1].float().argmax()))
        if own[-1] in model.stop_ids or len(own) >= limit:
            break
        logits.append(after(own[-1], len(own) - 1))
    if given is not None:
        known = _common(own[:-1], given[:-1])
        plan.lane.length = rows + known  # back to where the two answers part; what follows is written over
        logits = logits[: known + 1]
        logits += [after(token, known + number) for number, token in enumerate(given[known:-1])]
    text = _text(model, prepared, own)
    return Answered(tuple(own), text, torch.stack(logits), prepared.tokens, plan.computed)


def _text(model: LanguageModel, prepared: Prepared, tokens: Sequence[int]) -> str:
    stream = TextStream(model.tokenizer, prepared.token_ids, ())
    return "".join(stream.push(token) for token in tokens if token not in model.stop_ids) + stream.finish()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
