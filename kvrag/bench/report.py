"""What a benchmark says."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from kvrag.bench.bandwidth import Bandwidth
from kvrag.bench.decoding import DecodeRow
from kvrag.bench.first_token import FirstTokenRow
from kvrag.files import replace_file
from kvrag.model import LanguageModel
from kvrag.plotting import new_figure, save_figure

__all__ = ["BenchReport"]


@dataclass(frozen=True)
class BenchReport:
    """Rows, and what they were measured on.

    Attributes:
        model: its name.
        device: it ran on.
        dtype: of weights, keys and values.
        date: ISO 8601.
        bandwidth: of the device, measured in the same run.
        warm_up_s: seconds that recording passes took.
        rows: of one benchmark.
    """

    model: str
    device: str
    dtype: str
    date: str
    bandwidth: Bandwidth
    warm_up_s: float
    rows: Sequence[FirstTokenRow] | Sequence[DecodeRow]

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        bandwidth: Bandwidth,
        warm_up_s: float,
        rows: Sequence[FirstTokenRow] | Sequence[DecodeRow],
    ) -> "BenchReport":
        """A report of today."""
        dtype = str(model.dtype).removeprefix("torch.")
        return cls(model.name, model.device_name, dtype, str(date.today()), bandwidth, round(warm_up_s, 1), rows)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "date": self.date,
            "hbm_gbps": round(self.bandwidth.memory, 1),
            "pcie_gbps": round(self.bandwidth.host, 1),
            "warm_up_s": self.warm_up_s,
            "rows": [asdict(row) for row in self.rows],
        }

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        replace_file(path, (json.dumps(self.as_json(), indent=1) + "\n").encode())

    def plot(self, path: Path) -> None:
        """Draw times against tokens of context, or tokens per second against requests.

        Raises:
            KVRagError: matplotlib is not installed, or does not write such a format.
        """
        figure = new_figure(8, 6)
        axes = figure.subplots()
        for name, points in self._lines().items():
            style = {"linestyle": ":"} if name.startswith("floor") else {"marker": "o"}
            axes.plot(*zip(*sorted(points), strict=True), label=name, **style)
        first = isinstance(self.rows[0], FirstTokenRow)
        axes.set_xlabel("tokens of attached context" if first else "requests over the same packets")
        axes.set_ylabel("time to first token [ms]" if first else "tokens per second")
        axes.set_xscale("log", base=2)
        numbers = sorted({row.context if isinstance(row, FirstTokenRow) else row.requests for row in self.rows})
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2)
        axes.set_title(f"{self.model}, {self.dtype} on {self.device}, {self.date}", loc="left")
        save_figure(figure, path)

    def _lines(self) -> dict[str, list[tuple[float, float]]]:
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            if isinstance(row, FirstTokenRow):
                name = row.method if row.tier == "-" else f"{row.method}, packets on the {row.tier}"
                lines.setdefault(name, []).append((row.context, row.ttft_ms))
                if row.tier != "-":
                    lines.setdefault(f"floor, packets on the {row.tier}", []).append((row.context, row.floor_ms))
            else:
                name = "recorded" if row.recorded else "eager"
                lines.setdefault(name, []).append((row.requests, row.tokens_per_s))
        return {name: list(dict.fromkeys(points)) for name, points in lines.items()}
