"""Strategies that compute packets' tokens anew: exact where they promise it, and the tokens they choose."""

import pytest
import torch

from kvrag.attach import ComputedStates
from kvrag.plan import plan_lane
from kvrag.strategies import A3, CacheBlend, FullRecompute, LegoLink, ProphetKV, RandomRecompute, SamKV

from ..conftest import CHUNKS

HEAD, GAP, TAIL = "Read this first.\n", "\n\n", "\nQuestion: when was it lit? Answer:"
PROMPT = HEAD + GAP.join(CHUNKS) + TAIL
EVERYTHING = [
    A3(ratio=1.0),
    CacheBlend(ratio=1.0),
    LegoLink(tokens=1000),
    ProphetKV(ratio=1.0),
    RandomRecompute(ratio=1.0),
    SamKV(initial=2, local=2, block=4, ratio=1.0),
]


def first_logits(engine, prompt, strategy):
    prepared = engine.prepare(prompt, strategy=strategy)
    plan = plan_lane(engine.model, prepared, ComputedStates(0), 8)
    return engine.model.forward([plan.rows])[0], plan


@pytest.fixture
def exact(new_engine):
    engine = new_engine(dtype=torch.float64)
    engine.build(CHUNKS)
    return engine


def close(a, b):
    assert (a - b).abs().max() / b.abs().max() < 1e-4


@pytest.mark.parametrize("strategy", EVERYTHING, ids=lambda s: s.name)
@pytest.mark.parametrize("head", ["", HEAD])
def test_recomputing_everything_equals_full_recompute(exact, strategy, head):
    prompt = head + GAP.join(CHUNKS) + TAIL
    got, plan = first_logits(exact, prompt, strategy)
    full, _ = first_logits(exact, prompt, FullRecompute(segmented=True))
    close(got, full)
    none, _ = first_logits(exact, prompt, "no-recompute")
    assert (none - full).abs().max() > 1e-2
