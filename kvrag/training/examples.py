"""From contexts to the packed rows that teacher and student compute."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from kvrag.adapter import Adapter
from kvrag.errors import PromptTooLongError
from kvrag.matching import HEAD_CHARS, Match
from kvrag.model import LanguageModel
from kvrag.packed_rows import NO_ANSWER, Branch, PackedRows, PromptTree, RowSizes
from kvrag.packet import PacketKey
from kvrag.packing import pack_prompts
from kvrag.prompt import PacketSegment, Segment, TextSegment, segment_prompt
from kvrag.qa import Context
from kvrag.qa.prompt_template import FilledPrompt, PromptTemplate
from kvrag.strategies import FullRecompute, Strategy

__all__ = ["Batch", "BatchSizes", "Grower", "micro_batches"]

_FULL = FullRecompute(segmented=True)


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of a batch's rows."""

    teacher: RowSizes
    student: RowSizes | None

    @classmethod
    def of(cls, batch: "Batch") -> "BatchSizes":
        """The sizes of a batch that is not filled up."""
        return cls(RowSizes.of(batch.teacher), None if batch.student is None else RowSizes.of(batch.student))

    @property
    def rows(self) -> int:
        """Rows to compute."""
        return sum(part.span_rows + part.read_rows for part in (self.teacher, self.student) if part is not None)

    def hold(self, other: "BatchSizes") -> bool:
        """Whether batches of the other sizes can be filled up to these."""
        if self.student is None or other.student is None:
            return self.teacher.hold(other.teacher)
        return self.teacher.hold(other.teacher) and self.student.hold(other.student)


@dataclass(frozen=True)
class Batch:
    """The same prompts twice.

    Attributes:
        teacher: as full recompute lays them out.
        student: as the strategy does; None when only the teacher is wanted.
        sizes: that it was filled up to, if it was.
    """

    teacher: PackedRows
    student: PackedRows | None
    sizes: BatchSizes | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[PromptTree],
        strategy: Strategy | None,
        adapter: Adapter | None,
        sizes: BatchSizes | None = None,
    ) -> "Batch":
        """Both layouts of some prompts, filled up to sizes if there are any."""
        student = None
        if strategy is not None:
            student = pack_prompts(prompts, strategy, adapter, None if sizes is None else sizes.student)
        return cls(pack_prompts(prompts, _FULL, None, None if sizes is None else sizes.teacher), student, sizes)

    @property
    def answer_tokens(self) -> int:
        """How many tokens are predicted."""
        return int((self.teacher.answer_ids != NO_ANSWER).sum())

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        student = None if self.student is None else self.student.to(device)
        return replace(self, teacher=self.teacher.to(device), student=student)


class Grower:
    """Makes prompt trees of contexts, tokenised as a served prompt is.

    Args:
        model: whose tokenizer and chat template count.
        max_tokens: of a prompt without its soft tokens; what is longer, or leaves no room for an answer in the context
            window, loses passages.
        max_answer_tokens: of an answer, its end token included.
    """

    def __init__(self, model: LanguageModel, max_tokens: int, max_answer_tokens: int) -> None:
        self._tokenizer = model.tokenizer
        self._render = model.render
        self._end = model.end_id
        self._name = model.name
        self._window = model.max_positions
        self._max_tokens = min(max_tokens, model.max_positions - max_answer_tokens)
        self._max_answer = max_answer_tokens
        self._literal = lru_cache(maxsize=1 << 15)(self._encode_literal)

    def trees(self, context: Context, template: PromptTemplate, *, answers: bool) -> list[PromptTree]:
        """One tree, where the template asks last; else one for every question; none where it is too long.

        Args:
            context: passages and questions.
            template: to fill in.
            answers: whether the data's first answers are to be predicted; questions without any are left out.

        Raises:
            PromptTooLongError: a passage does not fit into the context window alone.
        """
        grown: dict[tuple[Segment, ...], list[Branch]] = {}
        for question in context.questions:
            if answers and not question.answers:
                continue
            filled = template.fill(self._render, context.passages, question.text)
            answer = self.answer_ids(filled.text, question.answers[0]) if answers else ()
            *trunk, tail = self.segments(filled)
            assert isinstance(tail, TextSegment)
            grown.setdefault(tuple(trunk), []).append(Branch(tail.ids, answer))
        trees = [PromptTree(trunk, tuple(branches)) for trunk, branches in grown.items()]
        longest = max((tree.tokens for tree in trees), default=0)
        if longest <= self._max_tokens:
            return trees
        shorter = _without_a_passage(context)
        return [] if shorter is None else self.trees(shorter, template, answers=answers)

    def segments(self, filled: FilledPrompt) -> list[Segment]:
        """The prompt's segments as the engine cuts it when every passage has a packet; the last one is text."""
        places = [(n, at) for n, at in enumerate(filled.spans) if at[1] - at[0] >= HEAD_CHARS]
        if places and places[-1][1][1] == len(filled.text):
            places.pop()
        short = [at for n, at in enumerate(filled.spans) if n not in {number for number, _ in places}]
        matches = [Match(start, end, PacketKey(filled.text[start:end])) for _, (start, end) in places]
        segments = segment_prompt(
            filled.text, matches, self._tokenizer, literal_spans=short, chunk_ids=lambda _, text: self._literal(text)
        )
        assert isinstance(segments[-1], TextSegment), "the last packet was left out"
        return [_placeless(segment) for segment in segments]

    def answer_ids(self, prompt: str, answer: str) -> tuple[int, ...]:
        """The tokens that continue the prompt, and the token that ends an answer."""
        text = answer.strip() if not prompt or prompt[-1].isspace() else " " + answer.strip()
        return (*self._tokenizer.encode(text, literal=True)[: self._max_answer - 1], self._end)

    def _encode_literal(self, text: str) -> tuple[int, ...]:
        ids = self._tokenizer.encode(text, literal=True)
        if len(ids) >= self._window:
            raise PromptTooLongError(
                f"expected passages of fewer than {self._window} tokens, the context window of {self._name}, found "
                f"one of {len(ids)} that begins {text[:40]!r}; split it into smaller ones"
            )
        return tuple(ids)


def micro_batches(trees: Sequence[PromptTree], tokens: int) -> list[list[PromptTree]]:
    """Trees in groups of at most `tokens` rows, or a single longer one; of like length, so that little is padded."""
    groups: list[list[PromptTree]] = []
    size = 0
    for tree in sorted(trees, key=lambda tree: tree.tokens):
        if not groups or size + tree.tokens > tokens:
            groups.append([])
            size = 0
        groups[-1].append(tree)
        size += tree.tokens
    return groups


def _placeless(segment: Segment) -> Segment:
    """The segment without its place in characters, which differs with what the prompt asks."""
    if isinstance(segment, PacketSegment):
        return PacketSegment(segment.key, segment.ids, 0, 0)
    assert isinstance(segment, TextSegment)
    return TextSegment(segment.ids, 0, 0)


def _without_a_passage(context: Context) -> Context | None:
    """The context without its last passage that the first question does not need; None when there is no such."""
    needed = context.questions[0].passages
    spare = [n for n in range(len(context.passages)) if n not in needed]
    if not spare or len(context.passages) == 1:
        return None
    gone = spare[-1]
    kept = [n for n in range(len(context.passages)) if n != gone]
    renumbered = tuple(
        replace(q, passages=tuple(kept.index(n) for n in q.passages))
        for q in context.questions
        if gone not in q.passages
    )
    return Context(tuple(context.passages[n] for n in kept), renumbered)
