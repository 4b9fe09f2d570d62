"""What goes where: results to standard output; progress, warnings and errors to standard error."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

from kvrag.errors import SettingsError

__all__ = [
    "check_folders",
    "complain",
    "note",
    "one_line",
    "printable",
    "quiet",
    "results",
    "silence_third_parties",
    "warn",
    "write_json",
]

_ENVIRONMENT = {
    "ANONYMIZED_TELEMETRY": "False",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_stdout: ContextVar[TextIO | None] = ContextVar("stdout", default=None)
_LOUD = ("chromadb", "huggingface_hub", "llama_index", "pypdf", "sentence_transformers", "transformers")


def results() -> Console:
    """Standard output for people, in quiet work too; into a pipe it is wide, so that no table is cut."""
    out = _stdout.get() or sys.stdout
    return Console(file=out, highlight=False, width=None if out.isatty() else 160)


def write_json(value: Any) -> None:
    """One JSON value on standard output."""
    typer.echo(json.dumps(value, indent=2), file=_stdout.get())


def complain(message: str) -> None:
    """An error, as one line on standard error."""
    _say("error", "bold red", message)


def warn(message: str) -> None:
    """A warning, as one line on standard error."""
    _say("warning", "yellow", message)


def note(message: str) -> None:
    """A line on standard error."""
    Console(stderr=True, highlight=False).print(Text(printable(one_line(message))), soft_wrap=True)


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """The text without control characters: what a document or a file name says must not reach the terminal as such."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextmanager
def quiet() -> Iterator[None]:
    """Work during which standard output has results only, and kvrag's warnings are lines on standard error."""
    handler, logger = _Lines(), logging.getLogger("kvrag")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    before = _stdout.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):  # LlamaIndex prints
            yield
    finally:
        _stdout.reset(before)
        logger.removeHandler(handler)
        logger.propagate = propagates


def silence_third_parties() -> None:
    """No bars, telemetry and warnings of other libraries in this process; call it before they are imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger().addHandler(logging.NullHandler())  # or Python prints warnings, and a library may add its own
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:  # what is worse is raised too, and told once
            warn(record.getMessage())


def _say(kind: str, style: str, message: str) -> None:
    line = Text.assemble((f"{kind}: ", style), printable(one_line(message)))
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)


def check_folders(*files: Path | None) -> None:
    """Say which file has no folder to be written into, before anything is measured.

    Raises:
        SettingsError: the first of them.
    """
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise SettingsError(f"expected a folder for {file}, found none at {file.absolute().parent}; make it first")
