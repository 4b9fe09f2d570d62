"""Prompts with a common beginning, and the rows of one pass over many of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from kvrag.attach import PackedLayout
from kvrag.prompt import Segment, SoftSegment

__all__ = ["NO_ANSWER", "SOFT_PARTS", "Branch", "PackedRows", "PromptTree", "RowSizes"]

NO_ANSWER = -100
"""Token id of what only fills up answers; the one that torch's losses ignore."""

SOFT_PARTS = ("header", "trailer", "link")
"""Trained embeddings, in the order in which `PackedRows.soft` counts them."""


@dataclass(frozen=True)
class Branch:
    """How a prompt ends.

    Attributes:
        ids: `[n]` behind the last packet.
        answer: `[a]` to be predicted, its end token included.
        asked: how many of its first tokens are the question's own end.
    """

    ids: tuple[int, ...]
    answer: tuple[int, ...] = ()
    asked: int = 0


@dataclass(frozen=True)
class PromptTree:
    """Prompts that have everything up to their last packet in common.

    Attributes:
        trunk: segments up to the last packet.
        branches: one a prompt; at least one.
    """

    trunk: tuple[Segment, ...]
    branches: tuple[Branch, ...]

    @property
    def tokens(self) -> int:
        """Rows of text and chunks, soft tokens not counted."""
        own = sum(len(s.ids) for s in self.trunk if not isinstance(s, SoftSegment))
        return own + sum(len(b.ids) + len(b.answer) for b in self.branches)


@dataclass(frozen=True)
class PackedRows:
    """`S` rows of one pass; the rows of spans come first.

    Attributes:
        ids: `[S]` token ids; 0 where a soft token stands.
        positions: `[S]` in their prompts.
        soft_rows: `[n]` rows that soft tokens take.
        soft: `[n]` which one: a row of the adapter's `SOFT_PARTS` behind each other.
        span_rows: how many rows belong to spans.
        layout: of the pass.
        answer_rows: `[A]` rows whose logits predict `answer_ids`.
        answer_ids: `[A]`; `NO_ANSWER` where there is nothing to predict.
        labels: `[A]` the same without what is the question's own.
        last_reads: `[B, M]` number among a prompt's reads of each branch's last row before its answer; prompts with
            fewer branches repeat their last.
        last_rows: `[B, M]` the same as row numbers.
        ends: `[B, M]` position behind each branch's last row.
        sizes: rows of each prompt with its first branch.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    soft_rows: torch.Tensor
    soft: torch.Tensor
    span_rows: int
    layout: PackedLayout
    answer_rows: torch.Tensor
    answer_ids: torch.Tensor
    labels: torch.Tensor
    last_reads: torch.Tensor
    last_rows: torch.Tensor
    ends: torch.Tensor
    sizes: Sequence[int]

    def to(self, device: torch.device) -> "PackedRows":
        """The rows on a device."""
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor | PackedLayout)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class RowSizes:
    """Every size of packed rows. Rows of the same sizes can be computed by one CUDA graph.

    Attributes:
        span_rows, read_rows: rows of both kinds.
        spans, longest: spans, and rows of the longest.
        prompts, reads, keys: prompts, and the most reads and keys of one.
        soft, answers: rows that soft tokens take, and answer tokens.
    """

    span_rows: int
    read_rows: int
    spans: int
    longest: int
    prompts: int
    reads: int
    keys: int
    soft: int
    answers: int

    @classmethod
    def of(cls, rows: PackedRows) -> "RowSizes":
        """The sizes of some rows."""
        layout = rows.layout
        return cls(
            span_rows=rows.span_rows,
            read_rows=len(rows.ids) - rows.span_rows,
            spans=layout.spans.shape[0],
            longest=layout.spans.shape[1],
            prompts=layout.reads.shape[0],
            reads=layout.reads.shape[1],
            keys=layout.keys.shape[1],
            soft=len(rows.soft),
            answers=len(rows.answer_ids),
        )

    @classmethod
    def covering(cls, sizes: Sequence["RowSizes"], room: float = 1.0) -> "RowSizes":
        """The least sizes to which rows of all these sizes can be filled up, `room` times as large."""
        most = {f.name: round(room * max(getattr(size, f.name) for size in sizes)) for f in fields(cls)}
        most["span_rows"] += 1  # fillers of soft tokens need one
        most["longest"] = max(1, most["longest"])
        most["spans"] += most["prompts"] + -(-most["span_rows"] // most["longest"])
        most["reads"] = max(most["reads"], -(-most["read_rows"] // most["prompts"]))
        rows = most["span_rows"] + most["read_rows"]
        most["keys"] = max(most["keys"] + most["reads"], -(-rows // most["prompts"]))
        return cls(**most)

    def hold(self, other: "RowSizes") -> bool:
        """Whether rows of the other sizes can be filled up to these."""
        room = replace(
            self,
            span_rows=self.span_rows - 1,
            spans=self.spans - self.prompts - -(-self.span_rows // self.longest),
            keys=self.keys - self.reads,
        )
        return all(getattr(other, field.name) <= getattr(room, field.name) for field in fields(self))
