"""A training run of the command line: from options to files and a line about them."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvrag.cli.terminal import note, results, warn, write_json
from kvrag.errors import DataError, SettingsError, TrainingError

if TYPE_CHECKING:
    from kvrag.model import LanguageModel
    from kvrag.qa import QuestionSet
    from kvrag.training import RunResult, TrainingSettings

__all__ = ["start_training", "tell"]

_GENERATED = 1500  # topics of each domain that code makes


def start_training(
    make_task: Any,
    describe: dict[str, Any],
    *,
    data: list[str],
    stored: Path | None = None,
    namespace: str = "default",
    templates: list[str] | None,
    init: Path | None,
    author: str,
    own_answers: bool,
    settings: "TrainingSettings",
    micro_tokens: int,
    model: str,
    out: Path,
    device: str,
    dtype: str,
) -> "RunResult | None":
    """Load data and model, train, and return what the main process wrote.

    With `own_answers` the model answers what an author asked about bare texts; otherwise the author does. Chunks of a
    `stored` namespace are such texts; training on them begins with the adapter that is shipped for the model, unless
    `init` names another result.
    """
    from accelerate import Accelerator

    from kvrag.cli.folder import packet_store_in
    from kvrag.cli.prompts import find_template, training_templates
    from kvrag.progress import progress_bar
    from kvrag.sources import open_model, shipped_adapter
    from kvrag.store import PacketStore
    from kvrag.training import run_training, stored_passages
    from kvrag.training.memory import fitting_rows

    if init is not None and not init.exists():
        raise SettingsError(f"expected the result of an earlier run at {init}, found nothing there; correct --init")
    packets = None if stored is None else packet_store_in(stored)
    sets = [_load(spec, settings.seed) for spec in data]
    prompts = [find_template(name) for name in templates] if templates else training_templates()
    accelerator = Accelerator(cpu=device == "cpu")
    own = device == "auto" or (device == "cuda" and accelerator.num_processes > 1)
    opened = open_model(model, str(accelerator.device) if own else device, dtype)
    if packets is not None:
        with PacketStore(packets) as store:
            sets.append((stored_passages(store, opened, namespace=namespace, seed=settings.seed), 1.0))
    sets = _told_apart(sets)
    if author and all(len(questions) for questions, _ in sets):
        warn("--author has nothing to write: somebody has asked questions about all of the data")
    if any(not len(questions) for questions, _ in sets):
        sets = _with_questions(sets, opened, author, dtype, settings, own_answers=own_answers)
    task = make_task(opened)
    rows = micro_tokens or fitting_rows(opened, checkpointing=settings.gradient_checkpointing) // task.passes
    settings = settings.model_copy(update={"micro_tokens": rows})
    if init is not None:
        task.begin_from(init)
    elif packets is not None and (shipped := shipped_adapter(opened)) is not None:
        try:
            task.begin_from(shipped)
        except TrainingError:
            note(f"begins afresh: the adapter that is shipped for {opened.name} has other parts")
    if accelerator.is_main_process:
        told = ", ".join(f"{questions.name} ({len(questions)} questions)" for questions, _ in sets)
        note(f"training on {told} with {len(prompts)} prompts; {opened.name} on {opened.device}")
    with progress_bar("training", settings.steps, show=None if accelerator.is_main_process else False) as advance:
        done = 0

        def report(step: int, loss: float) -> None:
            nonlocal done
            advance(step - done)
            done = step

        return run_training(
            task, sets, prompts, settings, out, accelerator=accelerator, describe=describe, report=report
        )


def tell(result: "RunResult", as_json: bool) -> None:
    """Say where the result is and how good it is."""
    step, loss = min(result.trained.held_out, key=lambda pair: pair[1])
    if as_json:
        told = {"path": str(result.path), "steps": result.trained.steps, "best_step": step, "held_out_loss": loss}
        write_json(told | {"log": str(result.log), "picture": str(result.picture)})
        return
    results().print(f"{result.path}: held-out loss {loss:.4f} nats per answer token, from step {step}", soft_wrap=True)
    results().print(f"log {result.log}, picture {result.picture}", soft_wrap=True)


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


def _told_apart(sets: "list[tuple[QuestionSet, float]]") -> "list[tuple[QuestionSet, float]]":
    """The sets, those of the same name numbered: runs name their data."""
    seen: Counter[str] = Counter()
    apart = []
    for questions, share in sets:
        seen[questions.name] += 1
        number = seen[questions.name]
        apart.append((questions if number == 1 else replace(questions, name=f"{questions.name}-{number}"), share))
    return apart


def _with_questions(
    sets: "list[tuple[QuestionSet, float]]",
    model: "LanguageModel",
    author: str,
    dtype: str,
    settings: "TrainingSettings",
    *,
    own_answers: bool,
) -> "list[tuple[QuestionSet, float]]":
    """The sets, with questions that the author writes where nobody asked any, and answers to them if wanted.

    Raises:
        DataError: a model would learn from nothing but its own answers.
    """
    from kvrag.sources import open_model
    from kvrag.training.writing import with_answers, with_questions

    if not own_answers and not author:
        bare = next(questions.name for questions, _ in sets if not len(questions))
        raise DataError(
            f"expected questions with answers to train a reader on, found none in {bare}; name an --author that writes "
            "them, or give --data with answers"
        )
    writing = open_model(author, str(model.device), dtype) if author else model
    made = []
    for questions, share in sets:
        if not len(questions):
            note(f"{writing.name} writes questions about {questions.name}")
            questions = with_questions(writing, questions, settings.seed)
            if settings.answers == "given":
                questions = with_answers(model if own_answers else writing, questions)
        made.append((questions, share))
    return made
