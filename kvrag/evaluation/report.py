"""What a measurement of quality says."""

import json
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Self

from kvrag.engine import PacketEngine
from kvrag.files import replace_file

__all__ = ["QualityReport", "QualityRow", "Setup", "write_atomically"]


@dataclass(frozen=True)
class Setup:
    """What numbers were measured on.

    Attributes:
        model: its name.
        device: it ran on.
        dtype: of weights, keys and values.
        adapter: the first 16 characters of its digest, or "untrained".
        date: of the measurement, ISO 8601.
        codec: of the packets.
    """

    model: str
    device: str
    dtype: str
    adapter: str
    date: str
    codec: str = "raw"

    @classmethod
    def of(cls, engine: PacketEngine) -> Self:
        """The engine's, today."""
        model, adapter = engine.model, engine.adapter
        digest = "untrained" if adapter is None else adapter.digest[:16]
        dtype = str(model.dtype).removeprefix("torch.")
        return cls(model.name, model.device_name, dtype, digest, str(date.today()), engine.codec)


@dataclass(frozen=True)
class QualityRow:
    """One method over the cases of a data set.

    Attributes:
        dataset: its name.
        template: of the prompts.
        passages: in a prompt.
        method: its name.
        n: number of questions.
        dropped: questions whose prompt does not fit into the model's window.
        f1, f1_low, f1_high: SQuAD's F1, 0 to 100, macro mean with its 95 % bootstrap interval; None without answers.
        em: exact matches, 0 to 100.
        contains: answers that contain an accepted one, 0 to 100.
        gap_closed, gap_low, gap_high: share of what no-recompute loses that the method wins back, by paired bootstrap;
            None where full recompute is less than 5 F1 ahead; an end is None where resamples leave it without a bound.
        kl: KL(full recompute || method) in nats per token of full recompute's answer, mean over the questions.
        first_token_agreement: share of the questions whose first token is full recompute's, 0 to 1.
        computed_tokens: rows of a prompt computed at question time, mean.
        prompt_tokens: rows of a prompt, mean.
    """

    dataset: str
    template: str
    passages: int
    method: str
    n: int
    dropped: int
    f1: float | None
    f1_low: float | None
    f1_high: float | None
    em: float | None
    contains: float | None
    gap_closed: float | None
    gap_low: float | None
    gap_high: float | None
    kl: float
    first_token_agreement: float
    computed_tokens: float
    prompt_tokens: float


_DIGITS = {"kl": 6, "first_token_agreement": 4, "gap_closed": 4, "gap_low": 4, "gap_high": 4}


@dataclass
class QualityReport:
    """Rows measured on one model, with one adapter.

    Attributes:
        setup: what they were measured on.
        seed: of distractors, orders and resampling.
        max_new_tokens: of an answer.
        rows: measured so far.
    """

    setup: Setup
    seed: int
    max_new_tokens: int
    rows: list[QualityRow] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as plain data, numbers rounded to what they can say."""
        rows = [{name: _rounded(name, value) for name, value in asdict(row).items()} for row in self.rows]
        return {**asdict(self.setup), "seed": self.seed, "max_new_tokens": self.max_new_tokens, "rows": rows}

    def save(self, path: Path) -> None:
        """Write it as JSON; whoever reads the file meanwhile sees the old or the new one, whole."""
        write_atomically(path, json.dumps(self.as_json(), indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file, or make it, at once."""
    replace_file(path, text.encode())


def _rounded(name: str, value: Any) -> Any:
    return round(value, _DIGITS.get(name, 2)) if isinstance(value, float) else value
