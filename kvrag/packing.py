"""From the segments of many prompts to the rows of one pass; `plan` does it for one prompt that is served."""

from collections import Counter
from collections.abc import Sequence

import torch

from kvrag.adapter import Adapter
from kvrag.attach import NO_SPAN, pack_layout
from kvrag.packed_rows import NO_ANSWER, SOFT_PARTS, PackedRows, PromptTree, RowSizes
from kvrag.packet import Recipe
from kvrag.prompt import PacketSegment, Segment, SoftSegment, TextSegment
from kvrag.strategies import Strategy

__all__ = ["pack_prompts"]

_NO_BRANCH = -1
_FILLER_BRANCH = 1 << 30
_ANY = RowSizes(0, 0, 0, 0, 0, 0, 0, 0, 0)


def pack_prompts(
    prompts: Sequence[PromptTree], strategy: Strategy, adapter: Adapter | None, sizes: RowSizes | None = None
) -> PackedRows:
    """Lay out prompts as a strategy would serve them.

    Args:
        prompts: at least one.
        strategy: one that only attaches, or computes everything.
        adapter: how many soft tokens there are; their values do not matter.
        sizes: to fill up to, with rows that nothing sees and that predict nothing; they have to hold the prompts'.
    """
    spans, reads = _Rows(), _Rows()
    answers: list[tuple[int, int, int]] = []  # (number among the reads, token, label)
    last: list[list[int]] = []
    ends: list[list[int]] = []
    total: list[int] = []
    recipe = strategy.recipe(adapter)
    for number, prompt in enumerate(prompts):
        segments = [*prompt.trunk, TextSegment(prompt.branches[0].ids, 0, 0)]
        segments = strategy.arrange(segments, adapter)
        counts = [_size(segment, recipe if strategy.attaches else None) for segment in segments]
        starts = strategy.starts(segments, counts)
        order = 0
        new_span = True
        for segment, start, size in zip(segments[:-1], starts, counts[:-1], strict=False):
            if isinstance(segment, PacketSegment) and strategy.attaches:
                _wrapped(spans, segment, recipe, adapter, number, start, order)
            elif strategy.attaches:
                soft = _soft(adapter, segment.name, segment.tokens) if isinstance(segment, SoftSegment) else None
                ids = [0] * size if isinstance(segment, SoftSegment) else segment.ids
                reads.add(number, NO_SPAN, ids, range(start, start + size), order, 0, soft)
            else:
                assert not isinstance(segment, SoftSegment), "what is computed whole has no soft tokens"
                spans.add(number, spans.span(new_span), segment.ids, range(start, start + size), order, 0)
                new_span = False
            order += size
        total.append(order + len(prompt.branches[0].ids))
        last.append([])
        ends.append([])
        for branch in prompt.branches:
            ids = [*branch.ids, *branch.answer[:-1]]
            first = len(reads.ids)
            reads.add(number, NO_SPAN, ids, range(starts[-1], starts[-1] + len(ids)), order, len(last[-1]) + 1)
            final = first + len(branch.ids) - 1
            labels = [NO_ANSWER] * branch.asked + [*branch.answer[branch.asked :]]
            pairs = zip(branch.answer, labels, strict=True)
            answers += [(final + i, token, label) for i, (token, label) in enumerate(pairs)]
            last[-1].append(final)
            ends[-1].append(starts[-1] + len(branch.ids))
    if sizes is not None:
        _fill_up(spans, reads, answers, sizes)
    return _packed(spans, reads, answers, last, ends, total, sizes)


class _Rows:
    """Columns of rows that grow together."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.prompts: list[int] = []
        self.spans: list[int] = []
        self.orders: list[int] = []
        self.branches: list[int] = []
        self.soft: list[tuple[int, int]] = []
        self._spans = 0

    def span(self, new: bool) -> int:
        self._spans += new
        return self._spans - 1

    def add(
        self,
        prompt: int,
        span: int,
        ids: Sequence[int],
        positions: range,
        order: int,
        branch: int,
        soft: Sequence[int] | None = None,
    ) -> None:
        count = len(ids)
        if soft is not None:
            self.soft += [(len(self.ids) + i, number) for i, number in enumerate(soft)]
        self.ids += ids
        self.positions += positions
        self.prompts += [prompt] * count
        self.spans += [span] * count
        self.orders += range(order, order + count)
        self.branches += [branch] * count


def _wrapped(
    spans: _Rows, chunk: PacketSegment, recipe: Recipe, adapter: Adapter | None, prompt: int, start: int, order: int
) -> None:
    """The rows that `encode_batch` gives a chunk; dropped ones stand before `start` and no read sees them."""
    span, dropped = spans.span(True), recipe.dropped
    parts: list[tuple[Sequence[int], Sequence[int] | None]] = [
        (recipe.ids_before, None),
        ([0] * recipe.soft_before, _soft(adapter, "header", recipe.soft_before)),
        (chunk.ids, None),
        ([0] * recipe.soft_after, _soft(adapter, "trailer", recipe.soft_after)),
        (recipe.ids_after, None),
    ]
    first, place = len(spans.ids), -dropped
    for ids, soft in parts:
        positions = range(start + place, start + place + len(ids))
        spans.add(prompt, span, ids, positions, order + place, 0, soft)
        place += len(ids)
    spans.branches[first : first + dropped] = [_NO_BRANCH] * dropped


def _fill_up(spans: _Rows, reads: _Rows, answers: list[tuple[int, int, int]], sizes: RowSizes) -> None:
    """Add rows wherever prompts leave room, until there are as many as asked for."""
    of_reads = Counter(reads.prompts)
    of_keys = of_reads + Counter(spans.prompts)
    missing = sizes.read_rows - len(reads.ids)
    for number in range(sizes.prompts):
        count = min(missing, sizes.reads - of_reads[number], sizes.keys - of_keys[number])
        reads.add(number, NO_SPAN, [0] * count, range(count), 0, _FILLER_BRANCH)
        of_keys[number] += count
        missing -= count
    assert not missing, "reads for which no prompt has room"
    answers += [(len(reads.ids) - 1, NO_ANSWER, NO_ANSWER)] * (sizes.answers - len(answers))
    missing, filler = sizes.span_rows - len(spans.ids), len(spans.ids)
    for number in range(sizes.prompts):
        room = min(missing, sizes.keys - of_keys[number])
        missing -= room
        while room:
            count = min(room, sizes.longest)
            spans.add(number, spans.span(True), [0] * count, range(count), 0, _NO_BRANCH)
            room -= count
    assert not missing, "rows of spans for which no prompt has room"
    spans.soft += [(filler, 0)] * (sizes.soft - len(spans.soft) - len(reads.soft))


def _soft(adapter: Adapter | None, name: str, count: int) -> list[int]:
    """Rows of the adapter's parts behind each other."""
    if adapter is None or not count:
        return []
    first = sum(len(adapter.soft(part)) for part in SOFT_PARTS[: SOFT_PARTS.index(name)])
    return list(range(first, first + count))


def _size(segment: Segment, recipe: Recipe | None) -> int:
    if isinstance(segment, SoftSegment):
        return segment.tokens
    extra = recipe.extra_tokens if recipe is not None and isinstance(segment, PacketSegment) else 0
    return len(segment.ids) + extra


def _packed(
    spans: _Rows,
    reads: _Rows,
    answers: list[tuple[int, int, int]],
    last: list[list[int]],
    ends: list[list[int]],
    total: list[int],
    sizes: RowSizes | None,
) -> PackedRows:
    before = len(spans.ids)
    size = sizes or _ANY
    least = (size.spans, size.longest, size.prompts, size.reads, size.keys)
    soft = [*spans.soft, *((row + before, number) for row, number in reads.soft)]
    most = max(len(of_prompt) for of_prompt in last)
    final = torch.tensor([of_prompt + of_prompt[-1:] * (most - len(of_prompt)) for of_prompt in last])
    first_read = torch.tensor([reads.prompts.index(number) for number in range(len(last))])
    return PackedRows(
        ids=torch.tensor(spans.ids + reads.ids),
        positions=torch.tensor(spans.positions + reads.positions),
        soft_rows=torch.tensor([row for row, _ in soft], dtype=torch.long),
        soft=torch.tensor([number for _, number in soft], dtype=torch.long),
        span_rows=before,
        layout=pack_layout(
            spans.prompts + reads.prompts,
            spans.spans + reads.spans,
            spans.orders + reads.orders,
            spans.branches + reads.branches,
            least=least,
        ),
        answer_rows=torch.tensor([before + read for read, _, _ in answers], dtype=torch.long),
        answer_ids=torch.tensor([token for _, token, _ in answers], dtype=torch.long),
        labels=torch.tensor([label for _, _, label in answers], dtype=torch.long),
        last_reads=final - first_read[:, None],
        last_rows=final + before,
        ends=torch.tensor([of_prompt + of_prompt[-1:] * (most - len(of_prompt)) for of_prompt in ends]),
        sizes=total,
    )
