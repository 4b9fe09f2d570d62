"""How often and how lately prompts met which text."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvrag.errors import StoreError
from kvrag.packet import PacketKey
from kvrag.store import uses
from kvrag.store.uses import HALF_LIFE_S, NEVER, UseCounts

A, B, C = (PacketKey(name * 64) for name in "abc")


@pytest.fixture
def counts(tmp_path):
    counts = UseCounts(tmp_path / "uses.sqlite")
    yield counts
    counts.close()


@pytest.fixture
def clock(monkeypatch):
    """Passes when told to, in half-lives."""
    now = [1.8e9]
    monkeypatch.setattr(uses.time, "time", lambda: now[0])

    def pass_by(half_lives: float) -> None:
        now[0] += half_lives * HALF_LIFE_S

    return pass_by


def test_prompts_are_counted_over_restarts(counts, tmp_path):
    assert not counts._path.exists()
    assert counts.heats() == {}
    assert counts.add([A, B]) == {A: 1, B: 1}
    assert counts.add([A]) == {A: 2}
    again = UseCounts(tmp_path / "uses.sqlite")
    assert again.add([A, C]) == {A: 3, C: 1}
    again.close()


def test_more_uses_are_more_heat_and_old_ones_weigh_half(counts, clock):
    counts.add([A])
    counts.add([A])
    counts.add([A])
    clock(1)
    counts.add([B])
    assert counts.heat(A) > counts.heat(B)  # 3/2 uses to 1
    counts.add([B])
    assert counts.heat(A) < counts.heat(B)  # to 2
    assert counts.heat(B) - counts.heat(A) == pytest.approx(0.41503749927884376)  # log2(2 / 1.5)
    assert counts.heat(C) == NEVER


def test_uses_of_long_ago_are_dropped(counts, clock, tmp_path):
    counts.add([A])
    clock(20)
    counts.add([B])
    clock(20)
    again = UseCounts(tmp_path / "uses.sqlite")
    again.add([C])
    assert set(again.heats()) == {B, C}
    again.close()


def test_what_is_forgotten_begins_at_zero(counts):
    counts.add([A, B])
    counts.forget([A])
    assert counts.add([A, B]) == {A: 1, B: 2}


def test_threads_and_processes_lose_no_use(counts, tmp_path):
    other = UseCounts(tmp_path / "uses.sqlite")
    workers = [threading.Thread(target=lambda own=own: [own.add([A]) for _ in range(50)]) for own in (counts, other)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counts.add([A]) == {A: 101}
    other.close()


def test_many_that_make_the_file_at_once_find_it_in_order(tmp_path):
    for attempt in range(50):
        openers = [UseCounts(tmp_path / f"{attempt}.sqlite") for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda own: own.add([A]), openers))
        assert openers[0].add([A]) == {A: 5}
        for own in openers:
            own.close()


def test_a_fork_counts_with_a_connection_of_its_own(counts):
    counts.add([A])
    inherited = counts._sqlite
    if os.fork() == 0:
        counts.add([A])
        os._exit(0 if counts._sqlite is not inherited else 1)
    assert os.wait()[1] == 0
    assert counts.add([A]) == {A: 3}


def test_a_damaged_file_is_named_and_forgetting_does_not_fail(tmp_path):
    path = tmp_path / "uses.sqlite"
    path.write_bytes(b"nonsense" * 200)
    counts = UseCounts(path)
    for ask in (counts.heats, lambda: counts.heat(A), lambda: counts.add([A])):
        with pytest.raises(StoreError, match="delete it, it holds nothing else"):
            ask()
    counts.forget([A])
    path.unlink()
    assert counts.add([A]) == {A: 1}
    counts.close()
    with pytest.raises(StoreError, match="closed"):
        counts.add([A])
