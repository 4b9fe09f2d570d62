"""Verdicts about packets on one's own questions."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from kvrag import strategies
from kvrag.evaluation.calibrate import Calibration, Comparison, calibrate
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
        return Comparison(f"q{number}", "a|b", "a\n<b>", f1, 0.1, number < equal, 20, 100)

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
        "F1 of the answers 100; ask more"
    )


def test_answers_that_only_begin_alike_are_not_called_good():
    same = Comparison("q", "The bell is flat.", "The goats are few.", 40.0, 0.1, True, 20, 100)
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
    several = [Comparison(str(kl), "", "", 50.0, kl, True, 1, 2) for kl in (0.1, 0.3, 0.2)]
    found = Calibration(SETUP, "kv-packet", 0.9, 24, tuple(several))
    assert [c.kl for c in found.worst(2)] == [0.3, 0.2]
