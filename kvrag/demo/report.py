"""What the demo measured."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

__all__ = ["Answer", "DemoReport", "DemoRow"]


@dataclass(frozen=True)
class Answer:
    """One answer of a query engine.

    Attributes:
        answer: its text.
        right: whether the reference stands in it as whole words; case and punctuation do not count.
        ttft_ms: from the prompt string's arrival in the engine to the first token id, packets in host memory.
        prompt_tokens: rows of the prompt.
        cached_tokens: rows that were not computed.
        computed_tokens: rows that were.
    """

    answer: str
    right: bool
    ttft_ms: float
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int


@dataclass(frozen=True)
class DemoRow:
    """A question, answered both ways."""

    question: str
    reference: str
    packet: Answer
    full: Answer

    @property
    def ratio(self) -> float:
        """How many times sooner the first token comes with packets."""
        return self.full.ttft_ms / self.packet.ttft_ms


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured.

    Attributes:
        rows: a question each.
        model: name of the model.
        device: it ran on.
        dtype: of weights, keys and values.
        adapter: "untrained", or the adapter's digest.
        strategy: that attached the packets.
        top_k: retrieved chunks.
    """

    rows: Sequence[DemoRow]
    model: str
    device: str
    dtype: str
    adapter: str
    strategy: str
    top_k: int

    @property
    def ttft_ratio_median(self) -> float:
        """Median over the questions of full recompute's time to first token over that of packets."""
        return statistics.median(row.ratio for row in self.rows)

    @property
    def packet_right(self) -> int:
        """Number of right answers from packets."""
        return sum(row.packet.right for row in self.rows)

    @property
    def full_right(self) -> int:
        """Number of right answers by full recompute."""
        return sum(row.full.right for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "questions": [
                {
                    "question": row.question,
                    "reference": row.reference,
                    "packet": {
                        "answer": row.packet.answer,
                        "right": row.packet.right,
                        "ttft_ms": round(row.packet.ttft_ms, 2),
                        "cached_tokens": row.packet.cached_tokens,
                        "computed_tokens": row.packet.computed_tokens,
                    },
                    "full": {
                        "answer": row.full.answer,
                        "right": row.full.right,
                        "ttft_ms": round(row.full.ttft_ms, 2),
                        "prompt_tokens": row.full.prompt_tokens,
                    },
                }
                for row in self.rows
            ],
            "packet_right": self.packet_right,
            "full_right": self.full_right,
            "ttft_ratio_median": round(self.ttft_ratio_median, 2),
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "adapter": self.adapter,
            "strategy": self.strategy,
            "top_k": self.top_k,
            "date": str(date.today()),
        }
