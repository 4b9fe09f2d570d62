"""Verdicts about packets on one's own questions."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from kvrag import strategies
from kvrag.evaluation.calibrate import calibrate
from kvrag.evaluation.calibration import Calibration
from kvrag.evaluation.comparison import AtConfidence, Comparison, may_fall_back
from kvrag.evaluation.report import Setup
from kvrag.prompt import PacketSegment
from kvrag.strategies import Strategy
from tests.evaluation.conftest import PASSAGES

SETUP = Setup("tiny", "cpu", "float32", "untrained", "2026-01-01")


@dataclass(frozen=True)
class Forgetful(Strategy):
    """Leaves the packets out of the prompt."""

    name: ClassVar[str] = "forgetful"

    def arrange(self, segments, adapter):
        return [segment for segment in segments if not isinstance(segment, PacketSegment)]


@pytest.fixture
def forgetful(monkeypatch):
    known = strategies.available_strategies() | {"forgetful": Forgetful}
    monkeypatch.setattr(strategies, "available_strategies", lambda: known)


def made(equal: int, n: int, threshold: float = 0.9) -> Calibration:
    def comparison(number: int) -> Comparison:
        f1 = 100.0 if number < equal else float(number)
        return Comparison(f"q{number}", "a|b", "a\n<b>", f1, 0.1, number < equal, 20, 100, 90, (n - number) / n)

    return Calibration(SETUP, "kv-packet", threshold, 24, tuple(map(comparison, range(n))))


def test_full_recompute_agrees_with_itself(engine, cases_for):
    engine.build(PASSAGES)
    cases = cases_for(engine).cases
    found = calibrate(engine, cases, "full-recompute", threshold=0.3, max_new_tokens=8)
    assert found.verdict == "good"
    assert found.summary.startswith("packets answer as full recompute does: first token equal in 4 of 4 ")
    assert found.numbers() == {
        "first_token_agreement": 1,
        "first_token_low": 0.3976,
        "first_token_high": 1,
        "f1": 100,
        "kl": 0,
        "cached": 0,
        "fell_back": 0,
    }


def test_a_method_that_loses_the_documents_is_not_good_enough(engine, cases_for, forgetful):
    engine.build(PASSAGES)
    done = []
    found = calibrate(engine, cases_for(engine).cases, "forgetful", max_new_tokens=8, advance=done.append)
    assert done == [1] * 4
    assert found.verdict == "bad"
    assert found.summary.startswith("not good enough: first token equal in ")
    assert "kvrag train adapter --data" in found.summary
    assert found.numbers()["kl"] > 0.5
    assert found.numbers()["f1"] < 50


def test_packets_of_the_store_are_used_and_none_is_added(engine, cases_for):
    cases = cases_for(engine).cases
    without = calibrate(engine, cases, "no-recompute", max_new_tokens=2)
    assert (without.cached, without.numbers()["kl"]) == (0, 0)
    assert engine.store.stat().packets == 0
    engine.build(PASSAGES)
    found = calibrate(engine, cases, "no-recompute", max_new_tokens=2)
    assert found.cached > 0.5
    assert found.numbers()["kl"] > 0
    assert engine.store.stat().packets == len(PASSAGES)


@pytest.mark.parametrize(
    ("equal", "n", "threshold", "verdict"),
    [
        (96, 100, 0.9, "good"),
        (95, 100, 0.9, "unclear"),
        (80, 100, 0.9, "bad"),
        (10, 10, 0.9, "unclear"),
        (36, 36, 0.9, "good"),
        (35, 35, 0.9, "unclear"),
        (0, 1, 0.9, "unclear"),
        (0, 2, 0.9, "bad"),
        (1, 2, 0.0, "good"),
    ],
)
def test_the_whole_interval_decides(equal, n, threshold, verdict):
    assert made(equal, n, threshold).verdict == verdict


def test_few_questions_are_no_verdict():
    assert made(10, 10).summary == (
        "too few questions to tell: first token equal in 10 of 10 (95 % interval 69% to 100%, threshold 90%), "
        "F1 of the answers 100; ask more, 36 at least"
    )


def test_answers_that_only_begin_alike_are_not_called_good():
    same = Comparison("q", "The bell is flat.", "The goats are few.", 40.0, 0.1, True, 20, 100, 90, 0.9)
    found = Calibration(SETUP, "kv-packet", 0.9, 24, (same,) * 50)
    assert found.verdict == "mixed"
    assert found.summary.startswith("answers begin alike and go on differently: first token equal in 50 of 50 ")
    assert "F1 of the answers 40; read" in found.summary


def test_the_report_shows_the_ten_worst_side_by_side():
    found = made(5, 30)
    text = found.as_markdown()
    shown = [line for line in text.splitlines() if line.startswith("### ")]
    assert shown == [f"### {n}. q{4 + n}" for n in range(1, 11)]
    assert text.count("| a\\|b | a &lt;b> |") == 10
    assert found.summary in text
    assert [c["question"] for c in found.as_json()["questions"]][:2] == ["q5", "q6"]
    assert len(found.as_json()["questions"]) == found.as_json()["n"] == 30


def test_equal_f1_is_ordered_by_kl():
    several = [Comparison(str(kl), "", "", 50.0, kl, True, 1, 2, 2, 0.5) for kl in (0.1, 0.3, 0.2)]
    found = Calibration(SETUP, "kv-packet", 0.9, 24, tuple(several))
    assert [c.kl for c in found.worst(2)] == [0.3, 0.2]


def test_a_confidence_leaves_the_doubtful_to_full_recompute():
    """Of 100 answers the last 30 are wrong, and less probable the later they come."""
    found = made(70, 100)
    assert AtConfidence.of(found.comparisons, 0.0).recomputed == 0
    at = AtConfidence.of(found.comparisons, 0.2)
    assert (at.recomputed, at.first_token_agreement) == (0.19, 0.89)
    assert at.computed_tokens == pytest.approx(20 + 0.19 * 90)
    assert at.kl == pytest.approx(0.081)
    assert at.f1 == pytest.approx(sum(100 if n < 70 or n > 80 else n for n in range(100)) / 100)
    assert AtConfidence.of(found.comparisons, 1.1).computed_tokens == 110


def test_a_bad_verdict_names_the_confidence_that_would_do():
    found = made(70, 100)
    assert found.verdict == "bad"
    better = found.advice
    assert better.first_token_low >= 0.9 > AtConfidence.of(found.comparisons, better.confidence - 0.05).first_token_low
    assert f"--strategy kv-packet:confidence={better.confidence:g}" in found.summary
    assert f"| {found.at_confidences[1].confidence:g} |" in found.as_markdown()
    assert len(found.as_json()["at_confidence"]) == 19


@pytest.mark.parametrize("equal", [100, 10])
def test_nothing_is_advised_where_it_would_not_help_or_nobody_knows(equal):
    found = made(equal, equal)
    assert found.advice is None
    assert "confidence" not in found.summary


def test_only_a_strategy_that_keeps_every_answer_gets_advice():
    assert may_fall_back("kv-packet")
    others = ("kv-packet:confidence=0.5", "kv-packet:repair=0.2", "no-recompute", "full-recompute", "none-such")
    assert not any(map(may_fall_back, (*others, "kv-packet:top_n=2")))
    found = Calibration(SETUP, "no-recompute", 0.9, 24, made(70, 100).comparisons)
    assert found.advice is None
    assert "doubtful" not in found.as_markdown()


def test_what_is_promised_of_a_confidence_is_what_it_gives(engine, cases_for):
    engine.build(PASSAGES, strategy="kv-packet")
    cases = cases_for(engine).cases
    plain = calibrate(engine, cases, "kv-packet", max_new_tokens=8)
    middle = sorted(c.probability for c in plain.comparisons)[2]
    promised = AtConfidence.of(plain.comparisons, middle)
    found = calibrate(engine, cases, f"kv-packet:confidence={middle!r}", max_new_tokens=8)
    assert 0 < promised.recomputed < 1
    assert found.f1 == pytest.approx(promised.f1, abs=0.01)
    assert found.numbers()["kl"] == pytest.approx(promised.kl, abs=1e-6)
    assert found.numbers()["first_token_agreement"] == promised.first_token_agreement
    computed = [c.computed_tokens for c in found.comparisons]
    assert sum(computed) / len(computed) == pytest.approx(promised.computed_tokens, abs=0.1)
    assert sum(rows > 100 for rows in computed) / len(computed) == promised.recomputed
    assert found.numbers()["fell_back"] == promised.recomputed
    assert [c.fell_back for c in found.comparisons] == [rows > 100 for rows in computed]
    assert f"| prompts in doubt, answered once more | {promised.recomputed:.0%} |" in found.as_markdown()
    assert "once more" not in plain.as_markdown()


def test_no_advice_costs_as_much_as_full_recompute():
    wrong = Comparison("q", "a", "b", 0.0, 1.0, False, 20, 100, 90, 0.5)
    assert Calibration(SETUP, "kv-packet", 0.9, 24, (wrong,) * 100).advice is None


def test_without_packets_there_is_nothing_to_doubt():
    text = Comparison("q", "a", "a", 100.0, 0.0, True, 100, 100, 90, 0.1)
    found = Calibration(SETUP, "kv-packet", 0.9, 24, (text,) * 100)
    assert found.without_packets
    assert AtConfidence.of(found.comparisons, 0.95).recomputed == 0
