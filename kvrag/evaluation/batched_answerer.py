"""Answers many cases in one pass, for strategies that only attach and for full recompute, also of what is in doubt."""

from collections.abc import Sequence
from dataclasses import replace

from kvrag.adapter import Adapter
from kvrag.batched import generate_greedily, soft_table
from kvrag.evaluation.answering import Answered
from kvrag.evaluation.cases import Case
from kvrag.generate import TextStream
from kvrag.model import LanguageModel
from kvrag.packed_rows import Branch, PromptTree
from kvrag.packing import pack_prompts
from kvrag.prepared import certainty
from kvrag.prompt import PacketSegment, TextSegment, segment_prompt
from kvrag.qa.templates import FilledPrompt
from kvrag.strategies import Strategy
from kvrag.training.examples import Grower

__all__ = ["BatchedAnswerer"]

_TAIL = 16  # tokens of a prompt that is one text


class BatchedAnswerer:
    """Lays cases out as training does; every passage has its packet, encoded in the same pass.

    Args:
        model: nobody else may use it meanwhile.
        adapter: of its packets.
        max_new_tokens: of an answer.
    """

    def __init__(self, model: LanguageModel, adapter: Adapter | None, max_new_tokens: int) -> None:
        self._model = model
        self._adapter = adapter
        self._soft = soft_table(adapter, model.device)
        self._max_new_tokens = max_new_tokens
        self._grower = Grower(model, model.max_positions, max_new_tokens)

    def answer(
        self, cases: Sequence[Case], strategy: Strategy, given: Sequence[Sequence[int]] | None = None
    ) -> list[Answered]:
        """As `Answerer.answer`."""
        model, adapter = self._model, self._adapter
        strategy = strategy.fitted(model.framing)
        forced = given or [()] * len(cases)
        trees = [self._tree(case, strategy, tuple(tokens)) for case, tokens in zip(cases, forced, strict=True)]
        rows = pack_prompts(trees, strategy, adapter).to(model.device)
        writer = None
        if adapter is not None and strategy.recipe(adapter).writer:
            writer = adapter.writer_on(model.device, model.dtype)
        found = generate_greedily(model, rows, self._soft, writer, self._max_new_tokens, keep_logits=given is None)
        sizes = [len(tokens) for tokens in forced]
        predicted = found.given.split(sizes) if given is not None else None
        answers: list[Answered] = []
        for number, tree in enumerate(trees):
            (own,) = found.tokens[number]
            total = rows.sizes[number]
            computed = int(rows.last_reads[number, 0]) + 1 if strategy.attaches else total
            logits = predicted[number] if predicted is not None else found.logits[: len(own), number, 0]
            answers.append(Answered(tuple(own), self._text(tree, own), logits, total, computed))
        if strategy.fallback is not None:
            doubtful = [n for n, tree in enumerate(trees) if _in_doubt(strategy, tree, answers[n])]
            self._answer_again(answers, cases, doubtful, strategy.fallback, given)
        return answers

    def _answer_again(
        self,
        answers: list[Answered],
        cases: Sequence[Case],
        doubtful: Sequence[int],
        fallback: Strategy,
        given: Sequence[Sequence[int]] | None,
    ) -> None:
        """Put the fallback's answers to these cases in the place of those that are there."""
        if not doubtful:
            return
        predicted = None if given is None else [given[n] for n in doubtful]
        again = self.answer([cases[n] for n in doubtful], fallback, predicted)
        for n, answer in zip(doubtful, again, strict=True):
            answers[n] = replace(answer, computed=answers[n].computed + answer.computed, fell_back=True)

    def _tree(self, case: Case, strategy: Strategy, given: tuple[int, ...]) -> PromptTree:
        if strategy.matches:
            *trunk, tail = self._grower.segments(FilledPrompt(case.prompt, case.spans))
        else:
            *trunk, tail = segment_prompt(case.prompt, [], self._model.tokenizer)
        assert isinstance(tail, TextSegment)
        if not trunk and len(tail.ids) > _TAIL:  # rows of a trunk that is computed whole need no mask
            trunk, tail = [TextSegment(tail.ids[:-_TAIL], 0, 0)], TextSegment(tail.ids[-_TAIL:], 0, 0)
        return PromptTree(tuple(trunk), (Branch(tail.ids, given),))

    def _text(self, tree: PromptTree, tokens: Sequence[int]) -> str:
        stream = TextStream(self._model.tokenizer, tree.branches[0].ids, ())
        return "".join(stream.push(t) for t in tokens if t not in self._model.stop_ids) + stream.finish()


def _in_doubt(strategy: Strategy, tree: PromptTree, answer: Answered) -> bool:
    """Whether packets, of which there have to be some, leave the model in doubt about its first token."""
    attached = any(isinstance(segment, PacketSegment) for segment in tree.trunk)
    return attached and certainty(answer.logits[0]) < strategy.doubts_below
