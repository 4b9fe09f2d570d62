"""Scores and intervals against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from kvrag.evaluation.metrics import (
    answer_f1,
    bootstrap_mean,
    contains_answer,
    exact_match,
    gap_closed,
    kl_divergence,
    share_interval,
)


@pytest.mark.parametrize(
    ("answer", "references", "f1"),
    [
        ("The Night Boat.", ["night boat"], 100),
        ("night boat to Corran", ["night boat"], 200 * 2 / 6),
        ("twelve goats", ["a dozen goats", "twelve of the goats"], 200 * 2 / 5),  # the second suits better
        ("goats goats goats", ["goats"], 200 * 1 / 4),  # a word counts as often as the reference has it
        ("bread", ["goats"], 0),
        ("", ["goats"], 0),
        ("the", ["a"], 100),  # nothing is left of either
        ("goats", [], 0),
    ],
)
def test_f1_is_squads(answer, references, f1):
    assert answer_f1(answer, references) == pytest.approx(f1)


def test_exact_match_ignores_case_punctuation_and_articles_only():
    assert exact_match("the U.S.A.", ["USA"]) == 100
    assert exact_match("  two\nanchors", ["Bells", "Two anchors!"]) == 100
    assert exact_match("two sunken anchors", ["two anchors"]) == 0
    assert exact_match("theatre", ["atre"]) == 0


def test_an_answer_contains_a_reference_as_whole_words():
    assert contains_answer("It was cast from two sunken Anchors, they say.", ["bells", "two sunken anchors"])
    assert not contains_answer("In 1912, certainly.", ["12"])
    assert not contains_answer("Anything.", ["", "..."])


def test_kl_of_two_coins():
    fair = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    bent = torch.tensor([[math.log(3.0), 0.0], [5.0, 5.0]])
    assert kl_divergence(fair, bent).tolist() == pytest.approx([0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2), 0])
    assert kl_divergence(bent, fair)[0] == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))


def test_kl_of_a_distribution_and_itself_is_zero_also_where_tokens_are_impossible():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    logits[:, 7] = -torch.inf
    assert kl_divergence(logits, logits.clone()).tolist() == [0.0] * 5


def test_gap_closed_of_hand_computed_scores():
    full, none = [100.0, 80, 60, 40], [60.0, 40, 20, 0]
    method = [90.0, 70, 50, 30]  # everywhere three quarters of the way
    closed = gap_closed(method, none, full)
    assert closed is not None
    assert (closed.value, closed.low, closed.high) == pytest.approx((0.75, 0.75, 0.75))


def test_full_closes_the_gap_and_none_leaves_it_without_doubt():
    rng = np.random.default_rng(0)
    full = rng.uniform(0, 100, 200)
    none = full * rng.uniform(0, 1, 200)
    for method, value in ((full, 1.0), (none, 0.0)):
        closed = gap_closed(method, none, full)
        assert closed is not None
        assert (closed.value, closed.low, closed.high) == (value, value, value)


def test_a_gap_under_five_points_is_not_divided_by():
    assert gap_closed([50.0, 50], [48.0, 48], [52.9, 52.9]) is None
    assert gap_closed([50.0, 50], [60.0, 60], [50.0, 50]) is None
    assert gap_closed([50.0, 50], [48.0, 48], [53.0, 53]) is not None


def test_pairing_makes_the_gap_surer_than_its_parts():
    rng = np.random.default_rng(1)
    hard = rng.uniform(0, 60, 300)  # how hard a question is moves all three methods alike
    none, method, full = hard, hard + 30 + rng.normal(0, 2, 300), hard + 40
    closed = gap_closed(method, none, full)
    assert closed is not None
    assert 0.7 < closed.low < closed.value < closed.high < 0.8
    shuffled = gap_closed(rng.permutation(method), rng.permutation(none), full)
    assert shuffled is not None
    assert shuffled.high - shuffled.low > 5 * (closed.high - closed.low)


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(300):
        found = bootstrap_mean(100 * (rng.random(80) < 0.6), seed=seed, resamples=500)
        covered += found.low <= 60 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_bootstrap_is_repeatable_and_chunks_do_not_show(monkeypatch):
    values = np.random.default_rng(3).uniform(0, 100, 50)
    whole = bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) == whole
    assert bootstrap_mean(values, seed=6) != whole
    monkeypatch.setattr("kvrag.evaluation.metrics._CHUNK", 1000)
    assert bootstrap_mean(values, seed=5) == whole
    assert whole.value == pytest.approx(values.mean())


def test_one_question_has_an_interval_without_width():
    assert bootstrap_mean([40.0]).low == bootstrap_mean([40.0]).high == 40


def test_intervals_of_shares():
    found = share_interval(8, 10)  # a textbook's example
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4439, 0.9748), abs=5e-5)
    assert (share_interval(10, 10).low, share_interval(10, 10).high) == pytest.approx((0.025**0.1, 1))
    assert (share_interval(0, 10).low, share_interval(0, 10).high) == pytest.approx((0, 1 - 0.025**0.1))
    assert (share_interval(0, 0).low, share_interval(0, 0).high) == (0, 1)
    many = share_interval(4500, 5000)
    assert (many.low, many.high) == pytest.approx((0.8914, 0.9082), abs=5e-4)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_intervals_of_shares_hold_for_few_trials_too(share):
    for trials in (1, 5, 30):
        held = [share_interval(k, trials) for k in range(trials + 1)]
        chance = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
        assert sum(p for p, found in zip(chance, held, strict=True) if found.low <= share <= found.high) >= 0.95
