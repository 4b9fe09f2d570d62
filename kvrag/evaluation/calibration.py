"""The verdict on packets, and the reports that explain it."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from kvrag.evaluation.comparison import CONFIDENCES, AtConfidence, Comparison, may_fall_back
from kvrag.evaluation.metrics import Interval, share_interval
from kvrag.evaluation.report import Setup

__all__ = ["Calibration"]

Verdict = Literal["good", "mixed", "bad", "unclear"]


@dataclass(frozen=True)
class Calibration:
    """What came of it.

    Attributes:
        setup: what it was measured on.
        strategy: that was compared with full recompute.
        threshold: share of equal first tokens, 0 to 1, and hundredth of the answers' F1, that is good enough.
        max_new_tokens: of an answer.
        comparisons: at least one.
        left_out: questions for which there was nothing to compare.
    """

    setup: Setup
    strategy: str
    threshold: float
    max_new_tokens: int
    comparisons: tuple[Comparison, ...]
    left_out: int = 0

    @property
    def agreement(self) -> Interval:
        """Share of equal first tokens with its 95 % interval."""
        return share_interval(sum(c.first_token_equal for c in self.comparisons), len(self.comparisons))

    @property
    def f1(self) -> float:
        """Mean F1 of the answers against full recompute's, 0 to 100."""
        return fmean(c.f1 for c in self.comparisons)

    @property
    def verdict(self) -> Verdict:
        """What the first tokens say, whose whole interval has to be on one side of the threshold, and then the answers.

        Bad below the threshold, unclear around it; above it good or, if the answers' F1 is below the threshold, mixed:
        answers may begin alike ("The ...") and say different things.
        """
        found = self.agreement
        if found.high < self.threshold:
            return "bad"
        if found.low < self.threshold:
            return "unclear"
        return "good" if self.f1 >= 100 * self.threshold else "mixed"

    @cached_property
    def at_confidences(self) -> list[AtConfidence]:
        """What the strategy would answer with a confidence, from low to high; nothing if it has no such option."""
        return [AtConfidence.of(self.comparisons, c) for c in CONFIDENCES] if may_fall_back(self.strategy) else []

    @property
    def advice(self) -> AtConfidence | None:
        """The lowest confidence with which a verdict that is bad or mixed would be good.

        None if there is none that computes less than full recompute. It is chosen and judged on the same questions.
        """
        if self.verdict not in ("bad", "mixed"):
            return None
        everything = fmean(c.full_tokens for c in self.comparisons)
        for at in self.at_confidences:
            if at.first_token_low >= self.threshold and at.f1 >= 100 * self.threshold:
                return at if at.computed_tokens < everything else None
        return None

    @property
    def without_packets(self) -> bool:
        """Whether every row of every prompt was computed, once."""
        return all(c.computed_tokens == c.prompt_tokens for c in self.comparisons)

    @property
    def summary(self) -> str:
        """The verdict in a line, with the numbers it rests on and what to do."""
        equal, n = sum(c.first_token_equal for c in self.comparisons), len(self.comparisons)
        found = self.agreement
        numbers = (
            f"first token equal in {equal} of {n} (95 % interval {found.low:.0%} to {found.high:.0%}, threshold "
            f"{self.threshold:.0%}), F1 of the answers {self.f1:.0f}"
        )
        return {
            "good": f"packets answer as full recompute does: {numbers}",
            "mixed": f"answers begin alike and go on differently: {numbers}; read the worst of them side by side",
            "unclear": f"too few questions to tell: {numbers}; ask {self._more()}",
            "bad": f"not good enough: {numbers}; train an adapter (kvrag train adapter --data ...) or use --strategy "
            "full-recompute",
        }[self.verdict] + self._advised()

    def _more(self) -> str:
        """How many questions to ask: with `least`, all first tokens equal, the interval begins at the threshold."""
        least = math.ceil(math.log(0.025) / math.log(self.threshold)) if 0 < self.threshold < 1 else 0
        return f"more, {least} at least" if len(self.comparisons) < least else "more"

    @property
    def cached(self) -> float:
        """Share of the prompts' rows that came from packets, 0 to 1; none where a prompt was recomputed."""
        rows = sum(c.prompt_tokens for c in self.comparisons)
        return 1 - sum(min(c.computed_tokens, c.prompt_tokens) for c in self.comparisons) / rows

    def _advised(self) -> str:
        at = self.advice
        if at is None:
            return ""
        return (
            f"; or recompute what is doubtful, {at.recomputed:.0%} of these prompts, with --strategy {self.strategy}:"
            f"confidence={at.confidence:g}: first token equal in {at.first_token_agreement:.0%}, F1 {at.f1:.0f}"
        )

    def worst(self, count: int = 10) -> list[Comparison]:
        """The answers that differ most: lowest F1 first, then highest KL."""
        return sorted(self.comparisons, key=lambda c: (c.f1, -c.kl))[:count]

    def numbers(self) -> dict[str, float]:
        """Means over the questions; shares are 0 to 1."""
        found = self.agreement
        return {
            "first_token_agreement": round(found.value, 4),
            "first_token_low": round(found.low, 4),
            "first_token_high": round(found.high, 4),
            "f1": round(self.f1, 2),
            "kl": round(fmean(c.kl for c in self.comparisons), 6),
            "cached": round(self.cached, 4),
            "fell_back": round(fmean(c.fell_back for c in self.comparisons), 4),
        }

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data, the answers that differ most first."""
        return {
            **asdict(self.setup),
            "strategy": self.strategy,
            "threshold": self.threshold,
            "max_new_tokens": self.max_new_tokens,
            "verdict": self.verdict,
            "summary": self.summary,
            "n": len(self.comparisons),
            "left_out": self.left_out,
            **self.numbers(),
            "at_confidence": [asdict(at) for at in self.at_confidences],
            "questions": [asdict(c) for c in self.worst(len(self.comparisons))],
        }

    def as_markdown(self) -> str:
        """A report for people, with the ten answers that differ most."""
        on, found = self.setup, self.numbers()
        lines = [
            "# Packets against full recompute",
            "",
            f"**{_cell(self.summary)}**",
            "",
            f"{len(self.comparisons)} questions, {self.left_out} left out; answers of at most {self.max_new_tokens} "
            f"tokens; {self.strategy}, adapter {on.adapter}; {_cell(on.model)}, {on.dtype}, {on.device}; {on.date}.",
            "",
            "| | |",
            "|---|---|",
            f"| first token equal | {found['first_token_agreement']:.1%} |",
            f"| F1 against full recompute's answers | {found['f1']:.1f} |",
            f"| KL(full recompute, packets), nats per token | {found['kl']:.4f} |",
            f"| rows of the prompts from packets | {found['cached']:.1%} |",
            *([f"| prompts in doubt, answered once more | {found['fell_back']:.0%} |"] if found["fell_back"] else []),
            "",
            *self._confidence_table(),
            "## The answers that differ most",
        ]
        for number, c in enumerate(self.worst(), 1):
            first = "equal" if c.first_token_equal else "different"
            lines += [
                "",
                f"### {number}. {_cell(c.question)}",
                "",
                "| packets | full recompute |",
                "|---|---|",
                f"| {_cell(c.packets)} | {_cell(c.full)} |",
                "",
                f"F1 {c.f1:.1f}, KL {c.kl:.4f}, first token {first}.",
            ]
        return "\n".join(lines) + "\n"

    def _confidence_table(self) -> list[str]:
        if not self.at_confidences:
            return []
        return [
            "## With doubtful prompts recomputed",
            "",
            f"`{self.strategy}:confidence=C` keeps answers whose first token is at least so probable.",
            "",
            "| confidence | prompts recomputed | first token equal | F1 | KL | rows computed |",
            "|---|---|---|---|---|---|",
            *(
                f"| {at.confidence:g} | {at.recomputed:.0%} | {at.first_token_agreement:.1%} | {at.f1:.1f} "
                f"| {at.kl:.4f} | {at.computed_tokens:.0f} |"
                for at in self.at_confidences[1::2]
            ),
            "",
        ]


def _cell(text: str) -> str:
    """The text as part of a Markdown table: one line, without markup and control characters."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text).split())
    for special in "\\`*_[]|#":
        line = line.replace(special, f"\\{special}")
    return line.replace("<", "&lt;")
