"""Quality of reuse: the same questions, prompts and tokens for every method, scored against full recompute."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from kvrag.evaluation.answering import Answered, Answerer
from kvrag.evaluation.cases import Case, Cases, in_batches
from kvrag.evaluation.metrics import (
    Interval,
    answer_f1,
    bootstrap_mean,
    contains_answer,
    exact_match,
    gap_closed,
    kl_divergence,
)
from kvrag.evaluation.report import QualityRow
from kvrag.strategies import FullRecompute, NoRecompute, Strategy, strategy_from_name

__all__ = [
    "FULL",
    "NATURAL",
    "NONE",
    "Score",
    "compare",
    "measure",
    "methods_from_names",
    "rows_of",
    "score",
]

FULL, NONE, NATURAL = FullRecompute.name, NoRecompute.name, f"{FullRecompute.name}-natural"


def methods_from_names(names: Sequence[str]) -> dict[str, Strategy]:
    """Strategies by the name of their row: those asked for, and what all numbers refer to.

    "full-recompute" computes every prompt over the tokens that the other methods see; "full-recompute-natural" over the
    prompt tokenised as one text, which is what users have without packets. Both are always there, and so is
    "no-recompute".

    Raises:
        SettingsError: no strategy has that name.
    """
    known: dict[str, Strategy] = {FULL: FullRecompute(segmented=True), NATURAL: FullRecompute()}
    wanted = dict.fromkeys([*names, NONE, FULL, NATURAL])
    return {name: known[name] if name in known else strategy_from_name(name) for name in wanted}


@dataclass(frozen=True)
class Score:
    """What one answer is worth.

    Attributes:
        text: the answer.
        f1, em, contains: as in `QualityRow`, against the accepted answers; 0 where there are none.
        kl: nats per token of full recompute's answer.
        first: whether the first token is full recompute's.
        computed_tokens: rows of the prompt that were computed.
        prompt_tokens: rows of the prompt.
    """

    text: str
    f1: float
    em: float
    contains: float
    kl: float
    first: bool
    computed_tokens: float
    prompt_tokens: int


def compare(case: Case, answered: Answered, full: Answered) -> Score:
    """Score an answer; `answered.logits` predict the tokens of `full`."""
    return Score(
        text=answered.text,
        f1=answer_f1(answered.text, case.answers),
        em=exact_match(answered.text, case.answers),
        contains=100.0 * contains_answer(answered.text, case.answers),
        kl=float(kl_divergence(full.logits, answered.logits).mean()),
        first=answered.token_ids[0] == full.token_ids[0],
        computed_tokens=answered.computed,
        prompt_tokens=answered.prompt_tokens,
    )


def measure(
    cases: Cases,
    methods: Mapping[str, Strategy],
    answerer: Callable[[Strategy], Answerer],
    *,
    seed: int = 0,
    batch_tokens: int = 16_384,
    seconds: float = math.inf,
    advance: Callable[[int], None] = lambda done: None,
) -> list[QualityRow]:
    """Answer every case by every method and score the answers: a row a method.

    Full recompute answers a batch first. Every other method then gives its own answers, and predicts full recompute's
    token by token. The logits live as long as their batch.

    Args:
        cases: at least one.
        methods: strategies by name, as from `methods_from_names`.
        answerer: who answers by a strategy.
        seed: of the resampling.
        batch_tokens: rows of prompts and answers that are kept in memory together.
        seconds: after which no other batch is begun; rows then count the questions that were answered by all methods.
            Without it the longest prompts come first, so that what has no room in memory fails at once.
        advance: hears of every answer.
    """
    if seconds == math.inf:  # prompts of like length leave little to fill up
        cases = replace(cases, cases=tuple(sorted(cases.cases, key=lambda case: -case.rows)))
    found: dict[str, list[Score]] = {name: [] for name in methods}
    end = time.monotonic() + seconds
    for batch in in_batches(cases.cases, batch_tokens):
        if any(found.values()) and time.monotonic() >= end:
            break
        for name, scores in score(batch, methods, answerer, advance).items():
            found[name] += scores
    return rows_of(cases, found, seed=seed)


def score(
    batch: Sequence[Case],
    methods: Mapping[str, Strategy],
    answerer: Callable[[Strategy], Answerer],
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, list[Score]]:
    """Scores of every method's answers to some cases; the arguments are those of `measure`."""
    full = answerer(methods[FULL]).answer(batch, methods[FULL])
    given = [answered.token_ids for answered in full]
    found: dict[str, list[Score]] = {}
    for name, strategy in methods.items():
        answers = full if name == FULL else answerer(strategy).answer(batch, strategy, given)
        found[name] = list(map(compare, batch, answers, full))
        advance(len(batch))
    return found


def rows_of(cases: Cases, found: Mapping[str, Sequence[Score]], *, seed: int = 0) -> list[QualityRow]:
    """A row a method.

    Args:
        cases: of which the first were answered.
        found: scores by method, the same cases for all.
        seed: of the resampling.
    """
    return [_row(cases, name, found, seed) for name in found]


def _row(cases: Cases, method: str, found: Mapping[str, Sequence[Score]], seed: int) -> QualityRow:
    answered = cases.cases[: len(found[method])]
    answerable = [number for number, case in enumerate(answered) if case.answers]
    f1 = closed = None
    if answerable:
        f1 = bootstrap_mean([found[method][i].f1 for i in answerable], seed=seed)
        by_method = ([found[name][i].f1 for i in answerable] for name in (method, NONE, FULL))
        closed = gap_closed(*by_method, seed=seed)
    scores = found[method]
    return QualityRow(
        dataset=cases.dataset,
        template=cases.template,
        passages=cases.passages,
        method=method,
        n=len(scores),
        dropped=cases.dropped,
        **_spread("f1", "f1", f1),
        em=fmean(scores[i].em for i in answerable) if answerable else None,
        contains=fmean(scores[i].contains for i in answerable) if answerable else None,
        **_spread("gap_closed", "gap", closed),
        kl=fmean(score.kl for score in scores),
        first_token_agreement=fmean(score.first for score in scores),
        computed_tokens=fmean(score.computed_tokens for score in scores),
        prompt_tokens=fmean(score.prompt_tokens for score in scores),
    )


def _spread(name: str, ends: str, interval: Interval | None) -> dict[str, float | None]:
    values = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    finite = (None if value is None or not math.isfinite(value) else value for value in values)
    return dict(zip((name, f"{ends}_low", f"{ends}_high"), finite, strict=True))
