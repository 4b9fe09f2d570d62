"""Many cases in one pass are answered as one after the other by the parts that serve."""

import pytest
import torch

from kvrag.evaluation.batched_answerer import BatchedAnswerer
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.evaluation.quality import measure
from kvrag.strategies import FullRecompute, KVPacket
from tests.training.test_packed_pass import make_adapter

ADAPTERS = {"none": None, "soft": {}, "everything": {"link": 2, "rank": 3}}


@pytest.fixture(params=ADAPTERS)
def trained(request, new_engine):
    shape = ADAPTERS[request.param]
    model = new_engine(folder="for the adapter").model
    return new_engine(adapter="none" if shape is None else make_adapter(model, **shape), strategy="kv-packet")


def test_tokens_logits_and_counts_are_the_engines(trained, methods, cases_for):
    cases = cases_for(trained).cases
    batched, one_by_one = BatchedAnswerer(trained.model, trained.adapter, 8), EngineAnswerer(trained, 8)
    given = [answered.token_ids for answered in one_by_one.answer(cases, methods["full-recompute"])]
    for tokens in (None, given):
        for strategy in methods.values():
            ours, theirs = (a.answer(cases, strategy, tokens) for a in (batched, one_by_one))
            for mine, served in zip(ours, theirs, strict=True):
                assert mine.token_ids == served.token_ids
                assert mine.text == served.text
                assert mine.prompt_tokens == served.prompt_tokens
                assert mine.computed == served.computed
                torch.testing.assert_close(mine.logits, served.logits, atol=5e-4, rtol=1e-3)


def test_prompts_in_doubt_are_answered_once_more(trained, cases_for):
    cases = cases_for(trained).cases
    batched, one_by_one = BatchedAnswerer(trained.model, trained.adapter, 8), EngineAnswerer(trained, 8)
    plain = one_by_one.answer(cases, KVPacket())
    sure = sorted(float(answered.logits[0].softmax(-1).max()) for answered in plain)
    strategy = KVPacket(confidence=(sure[1] + sure[2]) / 2)
    assert strategy.packs
    given = [answered.token_ids for answered in one_by_one.answer(cases, FullRecompute(segmented=True))]
    for tokens in (None, given):
        ours, theirs = (a.answer(cases, strategy, tokens) for a in (batched, one_by_one))
        assert sum(mine.fell_back for mine in ours) == 2
        for mine, served in zip(ours, theirs, strict=True):
            assert (mine.token_ids, mine.text, mine.fell_back) == (served.token_ids, served.text, served.fell_back)
            assert (mine.prompt_tokens, mine.computed) == (served.prompt_tokens, served.computed)
            torch.testing.assert_close(mine.logits, served.logits, atol=5e-4, rtol=1e-3)
    assert not KVPacket(confidence=0.5, repair=0.2).packs


@pytest.mark.parametrize("confidence", [0.0, 1.0])
@pytest.mark.parametrize("top_n", [1, 2, 9])
def test_prompts_are_read_twice(trained, cases_for, top_n, confidence):
    cases = cases_for(trained).cases
    strategy = KVPacket(confidence=confidence, top_n=top_n)
    assert strategy.packs
    batched, one_by_one = BatchedAnswerer(trained.model, trained.adapter, 8), EngineAnswerer(trained, 8)
    given = [answered.token_ids for answered in one_by_one.answer(cases, FullRecompute(segmented=True))]
    for tokens in (None, given):
        ours, theirs = (a.answer(cases, strategy, tokens) for a in (batched, one_by_one))
        for mine, served in zip(ours, theirs, strict=True):
            assert (mine.token_ids, mine.text, mine.fell_back) == (served.token_ids, served.text, served.fell_back)
            assert (mine.prompt_tokens, mine.computed) == (served.prompt_tokens, served.computed)
            torch.testing.assert_close(mine.logits, served.logits, atol=5e-4, rtol=1e-3)


def test_both_backends_measure_the_same(trained, methods, cases_for):
    cases = cases_for(trained)
    rows = [
        measure(cases, methods, lambda strategy, a=answerer: a)
        for answerer in (BatchedAnswerer(trained.model, trained.adapter, 8), EngineAnswerer(trained, 8))
    ]
    for mine, served in zip(*rows, strict=True):
        assert (mine.f1, mine.em, mine.first_token_agreement) == (served.f1, served.em, served.first_token_agreement)
        assert mine.kl == pytest.approx(served.kl, abs=1e-4)
