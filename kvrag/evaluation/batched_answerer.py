"""Answers many cases in one pass, for strategies that attach and for full recompute; some of them take another."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from kvrag.adapter import Adapter
from kvrag.batched import generate_greedily, rank_packets, soft_table
from kvrag.evaluation.answering import Answered
from kvrag.evaluation.cases import Case
from kvrag.generate import TextStream
from kvrag.model import LanguageModel
from kvrag.narrowing import ASKING_ROWS, best_packets, narrowed, narrows, packet_keys
from kvrag.packed_rows import Branch, PackedRows, PromptTree
from kvrag.packing import pack_prompts
from kvrag.prepared import certainty
from kvrag.prompt import Segment, TextSegment, segment_prompt
from kvrag.qa.templates import FilledPrompt
from kvrag.strategies import Strategy
from kvrag.training.examples import Grower
from kvrag.writer import Writer

__all__ = ["BatchedAnswerer"]

_TAIL = 16  # tokens of a prompt that is one text
_CUT = 1024  # prompts that are kept cut, since every method asks for the same ones


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
        self._cut = lru_cache(_CUT)(self._segments)

    def answer(
        self, cases: Sequence[Case], strategy: Strategy, given: Sequence[Sequence[int]] | None = None
    ) -> list[Answered]:
        """As `Answerer.answer`."""
        strategy = strategy.fitted(self._model.framing)
        forced = given or [()] * len(cases)
        trees = [self._tree(case, strategy, tuple(tokens)) for case, tokens in zip(cases, forced, strict=True)]
        return self._answer(trees, strategy, keep_logits=given is None)

    def _answer(self, trees: Sequence[PromptTree], strategy: Strategy, *, keep_logits: bool) -> list[Answered]:
        rows, writer = self._packed(trees, strategy)
        if strategy.narrowed is not None:
            return self._answer_narrowed(trees, strategy, rows, writer, keep_logits=keep_logits)
        found = generate_greedily(self._model, rows, self._soft, writer, self._max_new_tokens, keep_logits=keep_logits)
        sizes = [len(tree.branches[0].answer) for tree in trees]
        predicted = None if keep_logits else found.given.split(sizes)
        answers: list[Answered] = []
        for number, tree in enumerate(trees):
            (own,) = found.tokens[number]
            logits = predicted[number] if predicted is not None else found.logits[: len(own), number, 0]
            computed = _computed(rows, number, strategy)
            answers.append(Answered(tuple(own), self._text(tree, own), logits, rows.sizes[number], computed))
        if strategy.fallback is not None:
            doubtful = [n for n, tree in enumerate(trees) if _in_doubt(strategy, tree, answers[n])]
            left = [trees[n] for n in doubtful]
            again = self._answer(left, strategy.fallback, keep_logits=keep_logits) if left else []
            for n, answer in zip(doubtful, again, strict=True):
                answers[n] = replace(answer, computed=answers[n].computed + answer.computed, fell_back=True)
        return answers

    def _answer_narrowed(
        self,
        trees: Sequence[PromptTree],
        strategy: Strategy,
        rows: PackedRows,
        writer: Writer | None,
        *,
        keep_logits: bool,
    ) -> list[Answered]:
        """Answers from the packets that the questions attend to most."""
        assert strategy.narrowed is not None
        asking = [min(ASKING_ROWS, len(tree.branches[0].ids)) for tree in trees]
        attention = rank_packets(self._model, rows, self._soft, writer, asking)
        again = list(trees)
        before = [0] * len(trees)
        for n, (tree, found) in enumerate(zip(trees, attention, strict=True)):
            if narrows(tree.trunk, strategy.top_n):
                keys = packet_keys(tree.trunk)
                best = best_packets(found[: len(keys)], keys, strategy.top_n)
                again[n] = replace(tree, trunk=tuple(narrowed(tree.trunk, best)))
                before[n] = _computed(rows, n, strategy)
        answers = self._answer(again, strategy.narrowed, keep_logits=keep_logits)
        return [replace(a, computed=a.computed + first) for a, first in zip(answers, before, strict=True)]

    def _packed(self, trees: Sequence[PromptTree], strategy: Strategy) -> tuple[PackedRows, Writer | None]:
        """The rows of a pass over prompts, and what encodes their chunks."""
        model, adapter = self._model, self._adapter
        writer = None
        if adapter is not None and strategy.recipe(adapter).writer:
            writer = adapter.writer_on(model.device, model.dtype)
        return pack_prompts(trees, strategy, adapter).to(model.device), writer

    def _tree(self, case: Case, strategy: Strategy, given: tuple[int, ...]) -> PromptTree:
        *trunk, tail = self._cut(case.prompt, case.spans if strategy.matches else None)
        assert isinstance(tail, TextSegment)
        if not trunk and len(tail.ids) > _TAIL:  # rows of a trunk that is computed whole need no mask
            trunk, tail = [TextSegment(tail.ids[:-_TAIL], 0, 0)], TextSegment(tail.ids[-_TAIL:], 0, 0)
        return PromptTree(tuple(trunk), (Branch(tail.ids, given),))

    def _segments(self, prompt: str, spans: tuple[tuple[int, int], ...] | None) -> list[Segment]:
        """A prompt with a packet in each of its spans, or as one text."""
        if spans is None:
            return segment_prompt(prompt, [], self._model.tokenizer)
        return self._grower.segments(FilledPrompt(prompt, spans))

    def _text(self, tree: PromptTree, tokens: Sequence[int]) -> str:
        stream = TextStream(self._model.tokenizer, tree.branches[0].ids, ())
        return "".join(stream.push(t) for t in tokens if t not in self._model.stop_ids) + stream.finish()


def _in_doubt(strategy: Strategy, tree: PromptTree, answer: Answered) -> bool:
    """Whether packets, of which there have to be some, leave the model in doubt about its first token."""
    return bool(packet_keys(tree.trunk)) and certainty(answer.logits[0]) < strategy.doubts_below


def _computed(rows: PackedRows, number: int, strategy: Strategy) -> int:
    """Rows of a prompt that go through the model at question time."""
    return int(rows.last_reads[number, 0]) + 1 if strategy.attaches else rows.sizes[number]
