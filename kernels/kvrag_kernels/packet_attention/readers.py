"""Who reads which keys and values: what a pass over packets comes down to on a GPU."""

from collections.abc import Sequence

import numpy as np
import torch

from kvrag_kernels.packet_attention.encoded import FORMS, RAW, Scaled
from kvrag_kernels.packet_attention.table import AttentionTable

__all__ = ["ALIGNED", "EVERY", "READER", "forms_of", "place_of", "readers_of"]

ALIGNED = 16
"""Blocks begin at multiples of so many numbers: kernels read 16 bytes at once, of the smallest numbers there are."""

EVERY = 1 << 30
"""A bound that every token is below."""

READER = (
    *("key", "value", "head_stride", "layer_stride", "scales", "form", "tokens"),
    *("group", "first", "last", "bound", "turn"),
)
"""Columns of a reader, int64. Head `h` of layer `l` has the key of token `t` at `key + l * layer_stride +
h * head_stride + t * D`, in elements from an anchor. Rows from `first` to before `last` read the extent: of its tokens
those below their own number plus `bound`, turned back by row `turn - 1` of the table's angles; 0 is not at all.

`form` is a number of `FORMS`. What is not raw is a layer of bytes as `encoded` describes it: places and strides count
bytes, and `scales`, in float16 numbers from the anchor, is where the scales of layer 0 begin."""

_FORM = READER.index("form")


def place_of(anchor: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[int, int, int]:
    """Key, value and head stride of `[H, T, D]` tensors, seen from any tensor of their dtype on their device.

    Raises:
        ValueError: the tokens of a head do not stand one behind the other, or the block begins at an odd place.
    """
    _, _, D = keys.shape
    if keys.stride()[1:] != (D, 1) or keys.stride() != values.stride():
        raise ValueError(f"expected tokens of {D} numbers one behind the other, found strides {keys.stride()}")
    key, value = ((t.data_ptr() - anchor.data_ptr()) // anchor.element_size() for t in (keys, values))
    if any(number % ALIGNED for number in (key, value, keys.stride(0))):
        raise ValueError(f"expected blocks that begin at multiples of {ALIGNED} numbers, found {key} and {value}")
    return key, value, keys.stride(0)


def readers_of(
    anchor: torch.Tensor,
    keys: Sequence[torch.Tensor | Scaled],
    values: Sequence[torch.Tensor | Scaled],
    table: AttentionTable,
) -> tuple[np.ndarray, np.ndarray]:
    """Readers `[N, 12]` and score scales `[N]` of a table whose items have keys and values `[H, T, D]` of one layer."""
    found = []
    for item, k, v in zip(table.items, keys, values, strict=True):
        bound = EVERY if item.diagonal is None else item.diagonal + 1 - item.first_row
        turn = 0 if item.rotation is None else item.rotation + 1
        found.append((*_place(anchor, k, v), k.shape[1], item.group, item.first_row, item.last_row, bound, turn))
    return np.asarray(found, np.int64), np.asarray([item.scale for item in table.items], np.float32)


def forms_of(readers: np.ndarray) -> frozenset[str]:
    """Forms of extents besides raw."""
    return frozenset(FORMS[number] for number in {*readers[:, _FORM].tolist()} - {RAW})


def _place(anchor: torch.Tensor, keys: torch.Tensor | Scaled, values: torch.Tensor | Scaled) -> tuple[int, ...]:
    """The first six columns of a reader of one layer."""
    if isinstance(keys, torch.Tensor) and isinstance(values, torch.Tensor):
        return *place_of(anchor, keys, values), 0, 0, RAW
    assert isinstance(keys, Scaled), "keys and values are halves of one layer"
    assert isinstance(values, Scaled), "keys and values are halves of one layer"
    of_bytes = anchor.view(-1).view(torch.uint8)
    scales = (keys.scales.data_ptr() - anchor.data_ptr()) // keys.scales.element_size()
    return *place_of(of_bytes, keys.numbers, values.numbers), 0, scales, FORMS.index(keys.form)
