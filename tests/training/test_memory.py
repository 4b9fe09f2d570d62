"""How many rows go through the model at once."""

import os

import pytest

from kvrag.training.memory import fitting_rows


@pytest.fixture
def memory(monkeypatch):
    """Say how many bytes of memory there are."""

    def say(size: int) -> None:
        monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": size // 4096}[name])

    return say


def test_rows_are_bounded_whatever_there_is(memory, tiny):
    found = []
    for size in (0, 1 << 20, 1 << 26, 1 << 40):
        memory(size)
        found.append(fitting_rows(tiny))
    assert found == sorted(found)
    assert (found[0], found[-1]) == (512, 4096)


def test_checkpointing_makes_room_for_more(memory, new_model):
    model = new_model(num_hidden_layers=8)
    memory(3 << 26)
    assert 512 < fitting_rows(model) < fitting_rows(model, checkpointing=True)


def test_what_this_machine_has_is_read(tiny):
    assert 512 <= fitting_rows(tiny) <= 4096
