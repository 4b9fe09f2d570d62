"""What a run writes down while it goes: one JSON object a line, and a picture of it."""

import json
from pathlib import Path
from typing import Any

from kvrag.errors import TrainingError
from kvrag.plotting import new_figure, save_figure
from kvrag.training.checkpoint import write_whole

__all__ = ["RunLog", "plot_log"]


class RunLog:
    """A file of JSON lines; a run that is taken up again drops what lies behind its checkpoint.

    Args:
        path: of the file.
        step: up to which earlier lines stay.

    Raises:
        TrainingError: it cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = [line for line in read_log(path) if line["step"] <= step] if step else []
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, **fields: Any) -> None:
        """Append a line; floats are cut to six significant digits.

        Raises:
            TrainingError: it cannot be written.
        """
        cut = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in fields.items()}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(cut) + "\n")
        except OSError as error:
            raise TrainingError(
                f"expected to write {self._path}, found: {error}; free some space and run the same command again: it "
                "goes on from the last checkpoint"
            ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a kill cut short is left out."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def plot_log(path: Path, picture: Path, title: str) -> None:
    """Draw the losses of a log over its steps."""
    lines = read_log(path)
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    aside = [(line["step"], line["held_out"]) for line in lines if "held_out" in line]
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    if trained:
        axes.plot(*zip(*trained, strict=True), linewidth=0.6, alpha=0.6, label="training")
    if aside:
        axes.plot(*zip(*aside, strict=True), marker="o", markersize=3, label="held out")
    axes.set(title=title, xlabel="step", ylabel="loss per answer token (nats)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, picture)
