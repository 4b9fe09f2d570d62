"""The bytes of every codec, pinned: packets that were written once must stay what they are."""

import hashlib

import numpy as np
import pytest
import torch

from kvrag.store import codecs
from kvrag.store.codecs import CODECS

SHAPES = [(2, 3, 70, 40), (2, 2, 33, 7), (2, 1, 1, 1), (2, 2, 600, 64)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EXPECTED = {
    "raw": ("8b2c08ae3c23bae3", "8b2c08ae3c23bae3"),
    "int8": ("a297ba94640c64d7", "6a72539a50c63c20"),
    "fp8": ("022477cf4bbf4728", "17f581d9f3a87e71"),
    "int4": ("a65746d8122076b1", "b08924fa7906eb6e"),
}


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Normal ones with outliers, zeros and one row of tiny ones; NumPy's generator is the same everywhere."""
    drawn = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    drawn[0, :, :, 0] *= 30
    drawn[1, 0, 0] = 0
    drawn[0, 0, -1] *= 1e-6
    return torch.from_numpy(drawn).to(dtype)


def digest(tensors: list[torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def stored_and_expanded(name: str) -> tuple[str, str]:
    stored, expanded = [], []
    for shape in SHAPES:
        for dtype in DTYPES:
            layer = numbers(shape, dtype)
            before = layer.clone()
            stored.append(CODECS[name].encode(layer))
            CODECS[name].encode_intact(layer)
            assert torch.equal(layer, before)
            expanded.append(torch.empty_like(layer))
            CODECS[name].decode(stored[-1], expanded[-1])
    return digest(stored), digest(expanded)


@pytest.mark.parametrize("name", CODECS)
def test_bytes_and_numbers_are_the_same_for_ever(name):
    assert stored_and_expanded(name) == EXPECTED[name]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("block", [1, 100, 1 << 30])
def test_how_much_is_worked_on_at_a_time_changes_nothing(name, block, monkeypatch):
    monkeypatch.setattr(codecs, "_BLOCK", block)
    assert stored_and_expanded(name) == EXPECTED[name]
