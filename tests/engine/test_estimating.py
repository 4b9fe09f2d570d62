"""Sizes are exact, times are measured, and nothing is left behind."""

import dataclasses

import pytest

from kvrag import estimating
from kvrag.errors import DataError
from kvrag.estimating import _advice, estimate
from tests.conftest import CHUNKS


@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_the_bytes_and_tokens_foretold_are_those_of_the_build(new_engine, tmp_path, codec):
    engine = new_engine(codec=codec)
    found = estimate(engine, [*CHUNKS, CHUNKS[0], "short"], folder=tmp_path)
    assert (found.chunks, found.left_out, found.sampled, found.codec) == (len(CHUNKS), 1, 4, codec)
    assert engine.store.stat().packets == 0
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    report = engine.build(CHUNKS)
    assert found.tokens == report.tokens
    assert found.bytes[codec] == engine.store.stat().bytes
    assert found.bytes["raw"] > found.bytes["int8"] > found.bytes["int4"]


def test_times_belong_to_each_other(engine, tmp_path):
    found = estimate(engine, CHUNKS, folder=tmp_path, sample=2)
    assert found.sampled == 2
    assert found.compute_ms == pytest.approx(1e3 * found.tokens / found.chunks / found.tokens_per_s)
    assert found.build_s >= 1e-3 * found.chunks * found.compute_ms
    assert found.load_ms > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.policy = "eager"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("rate", "load_s", "uses"),
    [(1000.0, 0.001, 2), (1e9, 1.0, None)],
    ids=["computing is slow", "loading is slower"],
)
def test_building_is_earned_back_by_the_difference(engine, tmp_path, monkeypatch, rate, load_s, uses):
    monkeypatch.setattr(estimating, "_measure", lambda *_: ([rate], [0.0], [load_s]))
    found = estimate(engine, CHUNKS, folder=tmp_path)
    assert found.break_even_uses == uses
    assert found.policy == ("eager" if uses else "hot-set")


@pytest.mark.parametrize(
    ("size", "build_s", "uses", "policy"),
    [
        (100, 10, 2, "eager"),
        (100, 1000, 2, "on-first-use"),
        (600, 10, 1, "hot-set=2"),
        (600, 10, 5, "hot-set=5"),
        (1, 1, None, "hot-set"),
    ],
)
def test_advice(size, build_s, uses, policy):
    assert _advice(size, 1000, build_s, uses)[0] == policy


def test_texts_without_packets_are_an_error(engine, tmp_path):
    with pytest.raises(DataError, match="found none among 1"):
        estimate(engine, ["short"], folder=tmp_path)
