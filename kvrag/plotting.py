"""Figures without windows and state; matplotlib is imported when one is drawn."""

import importlib.util
from importlib import import_module
from pathlib import Path
from typing import Any

from kvrag.errors import KVRagError

__all__ = ["check_plotting", "new_figure", "save_figure"]


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


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        KVRagError: matplotlib is not installed.
    """
    check_plotting()
    library: Any = import_module("matplotlib.figure")  # without pyplot: no window, no state; PNGs are drawn by Agg
    return library.Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write an image; the file's suffix names the format.

    Raises:
        KVRagError: matplotlib does not write such a format.
    """
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise KVRagError(f"expected the name of an image such as chart.png, found {path}: {error}") from error
