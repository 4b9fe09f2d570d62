"""What one attention pass over packets reads, apart from the queries, keys and values themselves."""

from dataclasses import dataclass

import torch

__all__ = ["AttentionItem", "AttentionTable"]


@dataclass(frozen=True, slots=True)
class AttentionItem:
    """One extent of keys and the rows of the pass that see it.

    Attributes:
        first_row: first row of the pass that sees the extent.
        last_row: one past the last such row.
        rotation: row of the table's `cos` and `sin` by which queries are rotated back; None leaves them as they are.
        diagonal: row `first_row + i` sees token `t` of the extent iff `t <= i + diagonal`; None shows every token.
        scale: multiplies the scores, besides the softmax scaling (APE's inverse temperature).
        group: merge group. Items are merged by log-sum-exp within a group first, then across groups.
    """

    first_row: int
    last_row: int
    rotation: int | None = None
    diagonal: int | None = None
    scale: float = 1.0
    group: int = 0


@dataclass(frozen=True, slots=True)
class AttentionTable:
    """The items of one pass and what they share.

    Attributes:
        items: every extent with its rows; every row of the pass must see at least one token.
        cos: `[R, E / 2]` float32, computed in float64; `E <= D` leading channels are rotated, the rest pass through.
        sin: `[R, E / 2]` float32.
        group_scale: multiplies the log-sum-exp of a group before groups are merged.
        group_bias: is added to it afterwards.
    """

    items: tuple[AttentionItem, ...]
    cos: torch.Tensor
    sin: torch.Tensor
    group_scale: tuple[float, ...] = (1.0,)
    group_bias: tuple[float, ...] = (0.0,)
