"""OpenMP helpers are given back, and made again when they are needed."""

import os
import time
from collections.abc import Iterator

import pytest
import torch

from kvrag.attach import release_helpers


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_thread_computes_the_same_after_giving_its_helpers_back():
    a = torch.randn(600, 600)
    before = a @ a
    release_helpers()
    release_helpers()
    assert torch.equal(a @ a, before)


def test_helpers_go_when_they_are_released():
    torch.randn(600, 600) @ torch.randn(600, 600)
    with_helpers = threads()
    release_helpers()
    deadline = time.monotonic() + 10
    while threads() >= with_helpers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() < with_helpers
