"""Quality as a picture."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvrag.plotting import new_figure, save_figure

if TYPE_CHECKING:
    from kvrag.evaluation.costs import MethodRow
    from kvrag.evaluation.report import QualityReport, QualityRow, Setup

__all__ = ["pareto_front", "plot", "plot_pareto"]

_NEAR = 1.8  # times as long: names beside such points may lie on each other
_WIDTH = 0.8  # of a group of bars, 1 from group to group


def plot(report: "QualityReport", path: Path) -> None:
    """Write bars of F1 with their intervals, and of KL, as an image; the file's suffix names the format.

    Args:
        report: with at least one row.
        path: of the image, such as a PNG.

    Raises:
        KVRagError: matplotlib is not installed, or does not write such a format.
    """
    groups = list(dict.fromkeys(_group(row) for row in report.rows))
    methods = list(dict.fromkeys(row.method for row in report.rows))
    width = _WIDTH / len(methods)
    figure = new_figure(max(8.0, 1.5 + 0.4 * len(groups) * len(methods)), 7)
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
    save_figure(figure, path)


def plot_pareto(
    setup: "Setup",
    rows: "Sequence[MethodRow]",
    path: Path,
    *,
    milliseconds: "Callable[[MethodRow], float | None]" = lambda row: row.ttft_ms,
    axis: str = "time to first token [ms]",
    by_first_token: Collection[str] = (),
) -> None:
    """Write quality against time to first token, a panel a data set, with a line through what nothing else beats.

    Quality is F1, or where there are no answers the share of equal first tokens.

    Args:
        setup: what the rows were measured on.
        rows: at least one.
        path: of the image, such as a PNG.
        milliseconds: of a row; without any it is left out.
        axis: what they are.
        by_first_token: data sets whose answers are too long to be judged by F1.

    Raises:
        KVRagError: matplotlib is not installed, or does not write such a format.
    """
    groups = list(dict.fromkeys(_group(row) for row in rows))
    columns = min(3, len(groups))
    height = -(-len(groups) // columns)
    figure = new_figure(1 + 6 * columns, 0.5 + 5 * height)
    panels = figure.subplots(height, columns, squeeze=False).flatten()
    for panel, group in zip(panels, groups, strict=False):
        timed = {row: ms for row in rows if _group(row) == group and (ms := milliseconds(row)) is not None}
        scored = all(row.f1 is not None and row.dataset not in by_first_token for row in timed)
        worth = {row: _known(row.f1) if scored else 100 * row.first_token_agreement for row in timed}
        points = {row: (ms, worth[row]) for row, ms in timed.items()}
        front = pareto_front(list(points.values()))
        panel.plot(*zip(*front, strict=True), color="0.7", zorder=0)
        for row, point in points.items():
            colour = "C0" if point in front else "0.55"
            panel.errorbar(*point, yerr=_errors([row]) if scored else None, fmt="o", color=colour, alpha=0.7, capsize=2)
        _name(panel, {row.method: point for row, point in points.items()}, front)
        panel.set_xscale("log")
        panel.set_xlabel(axis, fontsize=8)
        panel.set_ylabel("F1, 95 % interval" if scored else "equal first tokens [%]")
        panel.set_title(group, fontsize=9)
        panel.grid(alpha=0.3)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    figure.suptitle(f"{setup.model} ({setup.dtype} on {setup.device}), adapter {setup.adapter}, {setup.date}")
    save_figure(figure, path)


def _name(panel: Any, points: Mapping[str, tuple[float, float]], front: Sequence[tuple[float, float]]) -> None:
    """Write names beside points: to the right, one below the other where they would lie on each other."""
    panel.margins(x=0.25, y=0.08)
    low, high = panel.get_ylim()
    step = 0.03 * (high - low)
    written: list[tuple[float, float]] = []
    for name, (ms, value) in sorted(points.items(), key=lambda item: -item[1][1]):
        near = [height for at, height in written if 1 / _NEAR < at / ms < _NEAR]
        height = min([value, *(other - step for other in near)])
        written.append((ms, height))
        weight = "bold" if (ms, value) in front else "normal"
        panel.annotate(name, (ms, height), xytext=(6, -3), textcoords="offset points", fontsize=7, weight=weight)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, worth), those that no other one beats in one and equals in the other, the cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, worth in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or worth > front[-1][1]:
            front.append((cost, worth))
    return front


def _group(row: "QualityRow") -> str:
    return f"{row.dataset}\n{row.passages} passages\n{row.template}"


def _errors(rows: "Sequence[QualityRow]") -> list[list[float]]:
    """How far the intervals reach down and up."""
    down = [_known(row.f1) - _known(row.f1_low) for row in rows]
    return [down, [_known(row.f1_high) - _known(row.f1) for row in rows]]


def _known(value: float | None) -> float:
    """Nothing is drawn for what is not a number."""
    return math.nan if value is None else value
