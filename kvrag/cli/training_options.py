"""Options that the training commands share, and what is read from them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from kvrag.errors import SettingsError

if TYPE_CHECKING:
    from kvrag.training import TrainingSettings

__all__ = [
    "AnswersOption",
    "AuthorOption",
    "CheckpointingOption",
    "ContextsOption",
    "DataOption",
    "EvaluateOption",
    "FromOption",
    "GraphsOption",
    "InitOption",
    "MicroOption",
    "OutOption",
    "PassagesOption",
    "PatienceOption",
    "QuestionsOption",
    "RateOption",
    "SeedOption",
    "StepsOption",
    "TemplateOption",
    "training_settings",
]

DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="A file of questions, a folder of texts, a generated domain or a hub data set; =SHARE weighs it. Repeat.",
    ),
]
FromOption = Annotated[
    Path | None,
    typer.Option("--from", help="A store whose chunks to learn from; begins with the model's own adapter, if any."),
]
OutOption = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for checkpoint, log and result.")]
TemplateOption = Annotated[
    list[str] | None, typer.Option("--template", help="Train with this prompt only; may be repeated. Default: all.")
]
StepsOption = Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps.")]
ContextsOption = Annotated[int, typer.Option("--contexts", min=1, help="Prompts a step, over all GPUs.")]
QuestionsOption = Annotated[int, typer.Option("--questions", min=1, help="About each context, at most.")]
PassagesOption = Annotated[str, typer.Option("--passages", help="Of a context: a number, or a range such as 1-12.")]
RateOption = Annotated[float, typer.Option("--rate", help="Highest learning rate of low-rank matrices.")]
AnswersOption = Annotated[str, typer.Option("--answers", help='"teacher": the model answers itself; or "given".')]
MicroOption = Annotated[int, typer.Option("--micro-tokens", min=0, help="Rows in memory at once; 0: what fits.")]
CheckpointingOption = Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")]
PatienceOption = Annotated[int, typer.Option("--patience", min=0, help="Evaluations without gain; 0: never stop.")]
EvaluateOption = Annotated[int, typer.Option("--evaluate-every", min=1, help="Steps between evaluations.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.")]
InitOption = Annotated[
    Path | None, typer.Option("--init", help="Begin with the result of an earlier run instead of afresh.")
]
GraphsOption = Annotated[
    bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="Record steps on a GPU and replay them.")
]
AuthorOption = Annotated[
    str, typer.Option("--author", help="Model that writes questions about bare texts. Default: the one trained for.")
]


def training_settings(*, passages: str, **values: Any) -> "TrainingSettings":
    """The settings of a run, `passages` as a number or a range.

    Raises:
        SettingsError: one of them is impossible.
    """
    from kvrag.training.settings import TrainingSettings

    found = re.fullmatch(r"(\d+)(?:-(\d+))?", passages.strip())
    if found is None:
        raise SettingsError(f"expected passages as a number or a range such as 1-12, found {passages!r}")
    low, high = int(found[1]), int(found[2] or found[1])
    try:
        return TrainingSettings(min_passages=low, max_passages=high, **values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        raise SettingsError(f"expected a valid {name}, found {first.get('input')!r}: {first['msg']}") from error
