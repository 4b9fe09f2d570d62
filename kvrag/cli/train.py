"""`kvrag train`: an adapter for a model, or a reader for a small one."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from kvrag.cli.app import app
from kvrag.cli.options import DeviceOption, DtypeOption, ModelOption
from kvrag.cli.terminal import note, quiet, results, write_json
from kvrag.errors import DataError, SettingsError

if TYPE_CHECKING:
    from kvrag.model import LanguageModel
    from kvrag.qa import QuestionSet
    from kvrag.training import RunResult, TrainingSettings

__all__ = ["adapter", "reader"]

_train = typer.Typer(help="Train an adapter for a model, or a reader for a small one.")
app.add_typer(_train, name="train")

_GENERATED = 1500  # topics of each domain that code makes

DataOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="A file of questions, a folder of texts, a generated domain or a hub data set; =SHARE weighs it. Repeat.",
    ),
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
MicroOption = Annotated[int, typer.Option("--micro-tokens", min=64, help="Rows in memory at once.")]
CheckpointingOption = Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")]
PatienceOption = Annotated[int, typer.Option("--patience", min=0, help="Evaluations without gain; 0: never stop.")]
EvaluateOption = Annotated[int, typer.Option("--evaluate-every", min=1, help="Steps between evaluations.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@_train.command()
def adapter(
    data: DataOption,
    out: OutOption,
    model: ModelOption = "demo",
    soft: Annotated[int, typer.Option("--soft", min=0, help="Soft tokens on either side of a chunk.")] = 8,
    link: Annotated[int, typer.Option("--link", min=0, help="Soft tokens computed behind every packet.")] = 0,
    writer_rank: Annotated[int, typer.Option("--writer-rank", min=0, help="LoRA while chunks are encoded.")] = 16,
    answers: AnswersOption = "teacher",
    steps: StepsOption = 600,
    contexts: ContextsOption = 32,
    questions: QuestionsOption = 6,
    passages: PassagesOption = "1-12",
    rate: RateOption = 1e-3,
    soft_rate: Annotated[float, typer.Option("--soft-rate", help="Highest learning rate of soft tokens.")] = 5e-3,
    template: TemplateOption = None,
    evaluate_every: EvaluateOption = 50,
    patience: PatienceOption = 0,
    micro_tokens: MicroOption = 16384,
    gradient_checkpointing: CheckpointingOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Teach packets to answer as full recompute does, from the model's own answers.

    Run the same command again to go on with a run that was interrupted. Several GPUs: `accelerate launch -m kvrag train
     adapter ...`.
    """
    settings = _settings(
        answers=answers,
        steps=steps,
        contexts=contexts,
        questions=questions,
        passages=passages,
        learning_rate=rate,
        soft_learning_rate=soft_rate,
        evaluate_every=evaluate_every,
        patience=patience,
        micro_tokens=micro_tokens,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    with quiet():
        from kvrag.training import AdapterShape, AdapterTask

        shape = AdapterShape(header=soft, trailer=soft, link=link, writer_rank=writer_rank)
        _run(
            lambda opened: AdapterTask(opened, shape, seed),
            {"shape": shape.model_dump()},
            data=data,
            templates=template,
            settings=settings,
            model=model,
            out=out,
            device=device,
            dtype=dtype,
            as_json=as_json,
        )


@_train.command()
def reader(
    data: DataOption,
    out: OutOption,
    model: ModelOption = "demo-base",
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the LoRA.")] = 16,
    steps: StepsOption = 1000,
    contexts: ContextsOption = 32,
    questions: QuestionsOption = 6,
    passages: PassagesOption = "1-12",
    rate: RateOption = 1e-3,
    template: TemplateOption = None,
    evaluate_every: EvaluateOption = 50,
    patience: PatienceOption = 0,
    micro_tokens: MicroOption = 16384,
    gradient_checkpointing: CheckpointingOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a LoRA that answers questions about several passages, from given answers.

    The result is a folder in peft's format, and `merged`, a folder with the whole model that `--model` takes.
    """
    settings = _settings(
        answers="given",
        steps=steps,
        contexts=contexts,
        questions=questions,
        passages=passages,
        learning_rate=rate,
        evaluate_every=evaluate_every,
        patience=patience,
        micro_tokens=micro_tokens,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    with quiet():
        from kvrag.training import ReaderTask

        _run(
            lambda opened: ReaderTask(opened, rank, seed),
            {"rank": rank},
            data=data,
            templates=template,
            settings=settings,
            model=model,
            out=out,
            device=device,
            dtype=dtype,
            as_json=as_json,
        )


def _settings(*, passages: str, **values: Any) -> "TrainingSettings":
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


def _run(
    make_task: Any,
    describe: dict[str, Any],
    *,
    data: list[str],
    templates: list[str] | None,
    settings: "TrainingSettings",
    model: str,
    out: Path,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    from accelerate import Accelerator

    from kvrag.cli.prompts import find_template, training_templates
    from kvrag.progress import progress_bar
    from kvrag.sources import open_model
    from kvrag.training import run_training

    sets = [_load(spec, settings.seed) for spec in data]
    prompts = [find_template(name) for name in templates] if templates else training_templates()
    accelerator = Accelerator(cpu=device == "cpu")
    opened = open_model(model, str(accelerator.device) if device == "auto" else device, dtype)
    sets = [(_asked(questions, opened, settings), share) for questions, share in sets]
    task = make_task(opened)
    if accelerator.is_main_process:
        told = ", ".join(f"{questions.name} ({len(questions)} questions)" for questions, _ in sets)
        note(f"training on {told} with {len(prompts)} prompts; {opened.name} on {opened.device}")
    with progress_bar("training", settings.steps, show=None if accelerator.is_main_process else False) as advance:
        done = 0

        def report(step: int, loss: float) -> None:
            nonlocal done
            advance(step - done)
            done = step

        result = run_training(
            task, sets, prompts, settings, out, accelerator=accelerator, describe=describe, report=report
        )
    if result is not None:
        _tell(result, as_json)


def _tell(result: "RunResult", as_json: bool) -> None:
    step, loss = min(result.trained.held_out, key=lambda pair: pair[1])
    if as_json:
        told = {"path": str(result.path), "steps": result.trained.steps, "best_step": step, "held_out_loss": loss}
        write_json(told | {"log": str(result.log), "picture": str(result.picture)})
        return
    results().print(f"{result.path}: held-out loss {loss:.4f} nats per answer token, from step {step}")
    results().print(f"log {result.log}, picture {result.picture}")


def _load(spec: str, seed: int) -> "tuple[QuestionSet, float]":
    from kvrag.qa.files import load_questions
    from kvrag.qa.generated import TRAINING_DOMAINS, generate_questions

    found = re.fullmatch(r"(.+?)(?:=(\d+(?:\.\d+)?))?", spec)
    if found is None:
        raise DataError(f"expected data as NAME or NAME=SHARE, found {spec!r}")
    name, share = found[1], float(found[2] or 1)
    if name in TRAINING_DOMAINS and not Path(name).exists():
        return generate_questions(name, _GENERATED, seed), share
    return load_questions(name), share


def _asked(questions: "QuestionSet", model: "LanguageModel", settings: "TrainingSettings") -> "QuestionSet":
    """The set, with questions that the model writes where nobody asked any."""
    if len(questions):
        return questions
    from kvrag.training.writing import with_questions

    note(f"the model writes questions about {questions.name}")
    return with_questions(model, questions, settings.seed)
