"""Progress bars on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(what: str, total: int, *, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A bar over `total` pieces of work; yields the function that reports some as done.

    Args:
        what: is being done.
        total: number of pieces; 0 shows nothing.
        show: by default, when standard error is a terminal.
    """
    visible = bool(total) and (sys.stderr.isatty() if show is None else show)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not visible, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
