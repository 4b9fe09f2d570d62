"""How good an answer is, how far two methods are apart, and how sure the numbers are.

F1 and exact match are SQuAD's (https://arxiv.org/abs/1606.05250), on a scale of 0 to 100.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = [
    "LEAST_GAP",
    "Interval",
    "answer_f1",
    "bootstrap_mean",
    "contains_answer",
    "exact_match",
    "gap_closed",
    "kl_divergence",
    "share_interval",
]

LEAST_GAP = 5.0
"""F1 points between full recompute and no repair below which the share of them that a method closes says nothing."""

_RESAMPLES = 10_000
_CHUNK = 1 << 20  # resampled numbers in memory at once
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Interval:
    """A number and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def answer_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, 0 to 100, against the reference that suits best.

    Case, punctuation and the articles a, an and the do not count.
    """
    return max((_f1(_words(answer), _words(reference)) for reference in references), default=0.0)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """100 if the answer is one of the references but for case, punctuation and articles, else 0."""
    return 100.0 * any(_words(answer) == _words(reference) for reference in references)


def contains_answer(answer: str, references: Sequence[str]) -> bool:
    """Whether a reference stands in the answer as whole words; case and punctuation do not count."""
    said = f" {' '.join(_plain(answer).split())} "
    return any(f" {wanted} " in said for wanted in (" ".join(_plain(r).split()) for r in references) if wanted)


def kl_divergence(full: torch.Tensor, method: torch.Tensor) -> torch.Tensor:
    """KL(full || method) in nats of every token `[n]`, from logits `[n, vocab]` of both, in float32."""
    p, q = full.float().log_softmax(-1), method.to(full.device).float().log_softmax(-1)
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, resamples: int = _RESAMPLES) -> Interval:
    """The mean with its percentile bootstrap interval.

    Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        values: one of each question; at least one.
        seed: of the resampling.
        resamples: how many.
    """
    table = np.asarray(values, dtype=np.float64)[:, None]
    return _interval(float(table.mean()), _resampled_means(table, seed, resamples)[:, 0])


def gap_closed(
    method: Sequence[float],
    none: Sequence[float],
    full: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> Interval | None:
    """How much of what no repair loses a method wins back: 0 is as bad as no repair, 1 as good as full recompute.

    (mean(method) - mean(none)) / (mean(full) - mean(none)) with a paired bootstrap: a resample draws questions, and
    takes the scores of all three methods for them.

    Args:
        method: F1 of each question.
        none: F1 of the same questions by no-recompute.
        full: F1 of the same questions by full recompute.
        seed: of the resampling.
        resamples: how many.

    Returns:
        None where full recompute is less than 5 points of F1 ahead: KL and the first tokens then have to judge.
    """
    table = np.stack([np.asarray(scores, dtype=np.float64) for scores in (method, none, full)], axis=1)
    value, gap = _closed(table.mean(axis=0))
    if gap < LEAST_GAP:
        return None
    return _interval(float(value), _closed(_resampled_means(table, seed, resamples))[0])


def share_interval(successes: int, trials: int) -> Interval:
    """A share with an interval that holds in at least 95 % of cases, however few the trials; without any it is 0 to 1.

    Source: C. J. Clopper, E. S. Pearson, Biometrika 26 (1934) 404.
    """
    if not trials:
        return Interval(math.nan, 0.0, 1.0)
    low = _root(lambda p: 1 - _at_most(successes - 1, trials, p)) if successes else 0.0
    high = _root(lambda p: 1 - _at_most(successes, trials, p), 0.975) if successes < trials else 1.0
    return Interval(successes / trials, low, high)


def _plain(text: str) -> str:
    return text.lower().translate(_WITHOUT_PUNCTUATION)


def _words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", _plain(text)).split()


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return 100.0 * (answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 200.0 * common / (len(answer) + len(reference))


def _resampled_means(table: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means `[resamples, columns]` of rows of `table` [n, columns] drawn with replacement."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // table.size)
    sizes = [min(step, resamples - first) for first in range(0, resamples, step)]
    return np.concatenate([table[rng.integers(0, len(table), (size, len(table)))].mean(axis=1) for size in sizes])


def _closed(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share closed and the gap, from means of method, none and full in the last axis."""
    method, none, full = means[..., 0], means[..., 1], means[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample without a gap: infinite, or nothing at all
        return (method - none) / (full - none), full - none


def _interval(value: float, resampled: np.ndarray) -> Interval:
    with np.errstate(invalid="ignore"):  # between an infinite number and a finite one there is none
        low, high = np.percentile(resampled[~np.isnan(resampled)], [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _at_most(successes: int, trials: int, p: float) -> float:
    """Probability of so many successes or fewer."""
    logs = (math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(successes + 1))
    return math.fsum(math.exp(log + k * math.log(p) + (trials - k) * math.log1p(-p)) for k, log in enumerate(logs))


def _root(rising: Callable[[float], float], target: float = 0.025) -> float:
    """Where a rising function of a probability reaches the target."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high
