"""Answers cases by the very parts that serve."""

from collections.abc import Sequence

import torch

from kvrag.attach import ComputedStates
from kvrag.engine import PacketEngine
from kvrag.evaluation.answering import Answered
from kvrag.evaluation.cases import Case
from kvrag.generate import TextStream
from kvrag.model import LanguageModel, Rows
from kvrag.plan import plan_lane
from kvrag.prepared import Prepared
from kvrag.strategies import Strategy

__all__ = ["EngineAnswerer"]


class EngineAnswerer:
    """Packets are built, found in the prompt, loaded and attached as for `PacketEngine.generate`.

    Nothing is reused from earlier prompts, so that every case costs what it costs. Passages without a packet, those of
    full recompute among them, are tokenised as the packets' are: all methods see the same tokens. Prompts are computed
    one by one, as a method's private copies have to be; their answers grow together.

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
        prepared: list[Prepared] = []
        for case in cases:
            if self._builds and strategy.attaches:
                self._make_room()
                self._engine.build(case.passages, strategy=strategy, progress=False)
            prepared.append(self._engine.prepare(case.prompt, strategy=strategy, documents=case.passages))
        return self._engine.run(_answer, self._engine.model, prepared, given, self._max_new_tokens)

    def _make_room(self) -> None:
        store = self._engine.store
        if self._room is not None and store.stat().bytes > self._room:
            for row in list(store.ls()):
                store.remove(row.key)


def _answer(
    model: LanguageModel, prepared: Sequence[Prepared], given: Sequence[Sequence[int]] | None, limit: int
) -> list[Answered]:
    """Prompts get a pass each, the tokens of all answers go side by side."""
    cases = [_Case(model, prompt, limit) for prompt in prepared]
    for case in cases:
        case.read_prompt(model)
    answering = cases
    while answering:
        for case in answering:
            case.own.append(int(case.logits[-1].float().argmax()))
        answering = [case for case in answering if case.own[-1] not in model.stop_ids and len(case.own) < limit]
        _append(model, [(case, case.own[-1]) for case in answering])
    if given is not None:
        left = {number: case.forget(tokens) for number, (case, tokens) in enumerate(zip(cases, given, strict=True))}
        while left := {number: tokens for number, tokens in left.items() if tokens}:
            _append(model, [(cases[number], tokens[0]) for number, tokens in left.items()])
            left = {number: tokens[1:] for number, tokens in left.items()}
    return [
        Answered(
            tuple(case.own),
            _text(model, case.plan.prepared, case.own),
            torch.stack(case.logits),
            case.plan.prepared.tokens,
            case.computed,
            case.plan.prepared.fell_back,
        )
        for case in cases
    ]


class _Case:
    """A prompt on the device and its answer so far.

    Attributes:
        plan: of the prompt.
        computed: rows that went through the model before the first token.
        own: tokens of the answer.
        logits: behind the prompt, and behind every token in the lane that follows it.
        prompt_rows: rows of the lane's own that belong to the prompt.
    """

    def __init__(self, model: LanguageModel, prepared: Prepared, limit: int) -> None:
        self.plan = plan_lane(model, prepared, ComputedStates(0), limit)
        self._limit = limit
        self.computed = 0.0
        self.own: list[int] = []
        self.logits: list[torch.Tensor] = []
        self.prompt_rows = 0

    def read_prompt(self, model: LanguageModel) -> None:
        """Compute what is left of it, and what is to be answered instead."""
        logits = model.forward([self.plan.rows])[0]
        self.computed += self.plan.computed
        instead = self.plan.again(logits)
        if instead is not None:
            self.plan = plan_lane(model, instead, ComputedStates(0), self._limit)
            return self.read_prompt(model)
        self.logits.append(logits)
        self.prompt_rows = self.plan.lane.length

    def forget(self, given: Sequence[int]) -> Sequence[int]:
        """Go back to where the own answer and a given one part; what is left of the given one, its end left out."""
        known = _common(self.own[:-1], given[:-1])
        self.plan.lane.length = self.prompt_rows + known  # what follows is written over
        del self.logits[known + 1 :]
        return given[known:-1]


def _append(model: LanguageModel, tokens: Sequence[tuple[_Case, int]]) -> None:
    """Compute a token of each case, in one pass."""
    if not tokens:
        return
    rows = [Rows(case.plan.lane, [token], [case.plan.prepared.end + len(case.logits) - 1]) for case, token in tokens]
    for (case, _), logits in zip(tokens, model.forward(rows), strict=True):
        case.logits.append(logits)


def _text(model: LanguageModel, prepared: Prepared, tokens: Sequence[int]) -> str:
    stream = TextStream(model.tokenizer, prepared.token_ids, ())
    return "".join(stream.push(token) for token in tokens if token not in model.stop_ids) + stream.finish()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
