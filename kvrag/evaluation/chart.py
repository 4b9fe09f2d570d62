"""Quality as a picture."""

import importlib.util
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvrag.errors import KVRagError

if TYPE_CHECKING:
    from kvrag.evaluation.report import QualityReport, QualityRow

__all__ = ["check_plotting", "plot"]

_WIDTH = 0.8  # of a group of bars, 1 from group to group


def check_plotting() -> None:
    """Say what is missing for a chart, before anything is measured.

    Raises:
        KVRagError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise KVRagError(
            "expected matplotlib for a chart, found it is not installed; run: pip install 'kvrag[train]', or leave "
            "--chart out"
        )


def plot(report: "QualityReport", path: Path) -> None:
    """Write bars of F1 with their intervals, and of KL, as an image; the file's suffix names the format.

    Args:
        report: with at least one row.
        path: of the image, such as a PNG.

    Raises:
        KVRagError: matplotlib is not installed, or does not write such a format.
    """
    check_plotting()
    library: Any = import_module("matplotlib.figure")  # without pyplot: no window, no state; PNGs are drawn by Agg
    groups = list(dict.fromkeys(_group(row) for row in report.rows))
    methods = list(dict.fromkeys(row.method for row in report.rows))
    width = _WIDTH / len(methods)
    figure = library.Figure(figsize=(max(8.0, 1.5 + 0.4 * len(groups) * len(methods)), 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for number, method in enumerate(methods):
        rows = [row for row in report.rows if row.method == method]
        places = [groups.index(_group(row)) + (number + 0.5) * width - _WIDTH / 2 for row in rows]
        above.bar(places, [_known(row.f1) for row in rows], width, yerr=_errors(rows), capsize=2, label=method)
        below.bar(places, [row.kl for row in rows], width)
    above.set_ylabel("F1, 95 % interval")
    above.set_ylim(0, 100)
    below.set_ylabel("KL from full recompute\n[nats per token]")
    below.set_xticks(range(len(groups)), groups)
    on = report.setup
    above.set_title(f"{on.model} ({on.dtype} on {on.device}), adapter {on.adapter}, {on.date}", loc="left")
    figure.legend(loc="outside lower center", ncols=min(4, len(methods)))
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise KVRagError(f"expected the name of an image such as chart.png, found {path}: {error}") from error


def _group(row: "QualityRow") -> str:
    return f"{row.dataset}\n{row.passages} passages\n{row.template}"


def _errors(rows: "Sequence[QualityRow]") -> list[list[float]]:
    """How far the intervals reach down and up."""
    down = [_known(row.f1) - _known(row.f1_low) for row in rows]
    return [down, [_known(row.f1_high) - _known(row.f1) for row in rows]]


def _known(value: float | None) -> float:
    """Nothing is drawn for what is not a number."""
    return math.nan if value is None else value
