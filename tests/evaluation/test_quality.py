"""Answers and logits of the engine's own parts, and the rows that are made of them."""

import json

import pytest
import torch

from kvrag.cli.eval import spread
from kvrag.errors import SettingsError
from kvrag.evaluation.answering import Answered
from kvrag.evaluation.backends import AnswererChoice
from kvrag.evaluation.batched_answerer import BatchedAnswerer
from kvrag.evaluation.cases import Case, Cases
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.evaluation.quality import FULL, NATURAL, NONE, compare, measure, methods_from_names
from kvrag.evaluation.report import QualityReport, Setup
from kvrag.strategies import CacheBlend, FullRecompute, KVPacket, NoRecompute


def test_what_is_referred_to_is_always_measured():
    assert list(methods_from_names(["kv-packet"])) == ["kv-packet", NONE, FULL, NATURAL]
    assert list(methods_from_names([FULL, "kv-packet", FULL])) == [FULL, "kv-packet", NONE, NATURAL]
    assert methods_from_names([])[FULL] == FullRecompute(segmented=True)
    assert methods_from_names([])[NATURAL] == FullRecompute()
    with pytest.raises(SettingsError, match="expected a strategy out of .*kv-packet.*, found 'magic'"):
        methods_from_names(["magic"])


def test_answers_are_those_of_generate(engine, methods, cases_for):
    cases = cases_for(engine).cases
    answerer = EngineAnswerer(engine, 8)
    for strategy in methods.values():
        for case, answered in zip(cases, answerer.answer(cases, strategy), strict=True):
            told = engine.generate(
                case.prompt, strategy=strategy, documents=case.passages, max_new_tokens=8, temperature=0
            )
            assert answered.token_ids == told.token_ids
            assert answered.text == told.text
            assert answered.prompt_tokens == told.usage.prompt_tokens
            assert answered.logits.argmax(-1).tolist() == list(answered.token_ids)


def test_all_methods_but_the_natural_one_see_the_same_tokens(engine, methods, cases_for):
    (case, *_) = cases_for(engine).cases
    ids = {}
    for name, strategy in methods.items():
        if strategy.attaches:
            engine.build(case.passages, strategy=strategy)
        ids[name] = engine.prepare(case.prompt, strategy=strategy, documents=case.passages).token_ids
    assert ids["kv-packet"] == ids[NONE] == ids[FULL] != ids[NATURAL]
    assert ids[NATURAL] == engine.model.tokenizer.encode(case.prompt)


def test_attaching_computes_everything_but_the_passages(engine, cases_for):
    (case, *_) = cases_for(engine).cases
    answerer = EngineAnswerer(engine, 2)
    ((full,), (none,)) = (answerer.answer([case], s) for s in (FullRecompute(segmented=True), NoRecompute()))
    packets = sum(len(engine.model.tokenizer.encode(text, literal=True)) for text in case.passages)
    assert full.computed == full.prompt_tokens == none.prompt_tokens
    assert none.computed == none.prompt_tokens - packets


def test_passages_without_packets_are_the_same_tokens_computed_as_text(engine, cases_for):
    (case, *_) = cases_for(engine).cases
    (answered,) = EngineAnswerer(engine, 2, builds=False).answer([case], KVPacket())
    (full,) = EngineAnswerer(engine, 2).answer([case], FullRecompute(segmented=True))
    assert engine.store.stat().packets == 0
    assert answered.computed == full.prompt_tokens
    assert torch.equal(answered.logits, full.logits)


@pytest.mark.parametrize("shared", [0, 3])
def test_given_tokens_are_predicted_as_by_the_models_own_forward(engine, cases_for, shared):
    (case, *_) = cases_for(engine).cases
    strategy = FullRecompute(segmented=True)
    answerer = EngineAnswerer(engine, 8)
    (own,) = answerer.answer([case], strategy)
    given = [*own.token_ids[:shared], 17, 230, 5, 391, 44]
    (answered,) = answerer.answer([case], strategy, [given])
    ids = [*engine.prepare(case.prompt, strategy=strategy, documents=case.passages).token_ids, *given[:-1]]
    expected = engine.model.plain_forward(ids, range(len(ids)))[-len(given) :]
    assert answered.token_ids == own.token_ids  # the own answer is another matter
    assert answered.logits.shape == expected.shape
    torch.testing.assert_close(answered.logits, expected, rtol=1e-4, atol=1e-4)


def test_kl_is_that_of_the_models_own_forward_over_full_recomputes_answer(engine, cases_for):
    (case, *_) = cases_for(engine).cases
    strategy, answerer = FullRecompute(segmented=True), EngineAnswerer(engine, 8)
    (full,) = answerer.answer([case], strategy)
    (none,) = answerer.answer([case], NoRecompute(), [full.token_ids])
    prompt = engine.prepare(case.prompt, strategy=strategy, documents=case.passages).token_ids
    ids = [*prompt, *full.token_ids[:-1]]
    p = engine.model.plain_forward(ids, range(len(ids)))[len(prompt) - 1 :].double().softmax(-1)
    q = none.logits.double().softmax(-1)
    score = compare(case, none, full)
    assert score.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert score.kl > 1e-3
    assert score.first == (none.token_ids[0] == full.token_ids[0])


def test_given_tokens_are_predicted_behind_attached_packets(engine, cases_for):
    (case, *_) = cases_for(engine).cases
    given = [17, 230, 5]
    (answered,) = EngineAnswerer(engine, 4).answer([case], NoRecompute(), [given])
    answering = EngineAnswerer(engine, 1)
    for number in range(3):  # the tokens as a part of the prompt
        longer = engine.model.tokenizer.decode(given[:number])
        (after,) = answering.answer([Case(case.prompt + longer, case.spans)], NoRecompute())
        if engine.model.tokenizer.encode(longer) == given[:number]:
            torch.testing.assert_close(answered.logits[number], after.logits[0], rtol=1e-4, atol=1e-4)
            checked = number
    assert checked


def test_a_store_of_ones_own_is_emptied_when_it_grows(engine, cases_for):
    cases = cases_for(engine).cases
    EngineAnswerer(engine, 1, room=0).answer(cases, NoRecompute())
    assert engine.store.stat().packets <= 3
    EngineAnswerer(engine, 1).answer(cases, NoRecompute())
    assert engine.store.stat().packets == 6


def test_rows_of_a_measurement(engine, methods, cases_for, tmp_path):
    done = []
    cases = cases_for(engine)
    choice = AnswererChoice(engine, "auto", 8)
    rows = {row.method: row for row in measure(cases, methods, choice, batch_tokens=400, advance=done.append)}
    assert sum(done) == 4 * len(cases.cases)
    assert list(rows) == ["kv-packet", NONE, FULL, NATURAL]
    assert rows[FULL].kl == 0
    assert rows[FULL].first_token_agreement == 1
    assert rows["kv-packet"].kl == rows[NONE].kl > 1e-3  # without an adapter they are the same
    assert rows[NONE].computed_tokens < rows[FULL].computed_tokens == rows[FULL].prompt_tokens
    report = QualityReport(Setup.of(engine), 0, 8, list(rows.values()))
    report.save(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told == json.loads(json.dumps(report.as_json()))
    assert (told["model"], told["adapter"], told["dtype"], told["device"]) == ("tiny", "untrained", "float32", "cpu")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".json" or p.name.startswith(".")] == ["report.json"]


class Scripted:
    """Answers with the texts it was given; its logits are those of a coin with these odds."""

    def __init__(self, texts, odds):
        self.texts, self.odds = texts, odds

    def answer(self, cases, strategy, given=None):
        logits = torch.log(torch.tensor([[self.odds, 1 - self.odds]]))
        return [Answered((text != "b",), text, logits, 10, 4) for text in (self.texts[c.prompt] for c in cases)]


def test_strategies_that_compute_tokens_anew_are_measured_beside_the_others(engine, cases_for):
    cases = cases_for(engine)
    choice = AnswererChoice(engine, "auto", 4)
    assert isinstance(choice(CacheBlend()), EngineAnswerer)
    assert isinstance(choice(NoRecompute()), BatchedAnswerer)
    methods = methods_from_names(["cacheblend", "prefix-cache"])
    rows = {row.method: row for row in measure(cases, methods, choice)}
    blend, exact = rows["cacheblend"], rows["prefix-cache"]
    assert rows[NONE].computed_tokens < blend.computed_tokens < blend.prompt_tokens
    assert 0 < blend.kl < rows[NONE].kl
    assert exact.kl == pytest.approx(0, abs=1e-5)
    assert exact.computed_tokens == exact.prompt_tokens == rows[FULL].prompt_tokens == blend.prompt_tokens
    (case, *_) = cases.cases
    (answered,) = choice(CacheBlend()).answer([case], CacheBlend())
    packets = sum(len(engine.model.tokenizer.encode(text, literal=True)) for text in case.passages)
    text = answered.prompt_tokens - packets
    assert answered.computed == text + (packets + packets + round(0.15 * packets)) / 3


def test_rows_hold_the_scores_of_the_answers():
    cases = Cases("set", "plain", 2, tuple(Case(str(n), (), "", ("b",)) for n in range(4)), 1)
    scripts = {
        "half": Scripted({"0": "b", "1": "b", "2": "x", "3": "b c"}, 0.75),
        NONE: Scripted({"0": "b", "1": "x", "2": "x", "3": "x"}, 0.75),
        FULL: Scripted({"0": "b", "1": "b", "2": "b", "3": "b"}, 0.5),
    }
    methods = {name: FullRecompute(segmented=name == FULL) for name in scripts}
    order = iter([FULL, "half", NONE])
    rows = {row.method: row for row in measure(cases, methods, lambda strategy: scripts[next(order)])}
    half = rows["half"]
    f1 = (100 + 100 + 0 + 200 / 3) / 4
    assert (half.n, half.dropped, half.passages) == (4, 1, 2)
    assert half.f1 == pytest.approx(f1)
    assert (half.em, half.contains) == (50, 75)
    assert half.gap_closed == pytest.approx((f1 - 25) / 75)
    assert half.first_token_agreement == 0.5
    assert half.kl == pytest.approx(0.5 * torch.log(torch.tensor(0.5 / 0.75)) + 0.5 * torch.log(torch.tensor(2.0)))
    assert (half.computed_tokens, half.prompt_tokens) == (4, 10)
    assert (rows[FULL].gap_closed, rows[FULL].gap_low, rows[NONE].gap_closed, rows[NONE].gap_high) == (1, 1, 0, 0)


def test_an_end_of_an_interval_without_a_bound_is_no_number(tmp_path):
    """Where none is as good as full in many resamples, the gap closed has no bound on that side; JSON has no NaN."""
    cases = Cases("set", "plain", 2, tuple(Case(str(n), (), "", ("b",)) for n in range(2)), 1)
    scripts = {
        "worse": Scripted({"0": "x", "1": "x"}, 0.75),
        NONE: Scripted({"0": "b", "1": "x"}, 0.75),
        FULL: Scripted({"0": "b", "1": "b"}, 0.5),
    }
    methods = {name: FullRecompute(segmented=name == FULL) for name in scripts}
    order = iter([FULL, "worse", NONE])
    row = next(r for r in measure(cases, methods, lambda strategy: scripts[next(order)]) if r.method == "worse")
    assert (row.gap_closed, row.gap_low) == (-1, None)
    report = QualityReport(Setup("m", "cpu", "float32", "untrained", "2026-01-01"), 0, 8, [row])
    assert "NaN" not in json.dumps(report.as_json())
    assert spread(row.gap_closed, row.gap_low, -1.0, ".2f") == "-1.00 (?--1.00)"


def test_questions_without_answers_are_judged_by_kl_and_the_first_token_only():
    answered = Answered((1,), "x", torch.tensor([[1.0, 2.0]]), 10, 4)
    assert compare(Case("", ()), answered, answered).f1 == 0
    cases = Cases("set", "plain", 2, (Case("0", ()), Case("1", ())), 0)
    script = Scripted({"0": "b", "1": "b"}, 0.5)
    for row in measure(cases, {NONE: NoRecompute(), FULL: FullRecompute(segmented=True)}, lambda strategy: script):
        assert (row.f1, row.f1_low, row.em, row.contains, row.gap_closed) == (None,) * 5
        assert (row.kl, row.first_token_agreement) == (0, 1)


def test_unknown_backends_are_named(engine):
    with pytest.raises(SettingsError, match="expected a backend out of auto, batched, engine"):
        AnswererChoice(engine, "quantum", 8)
