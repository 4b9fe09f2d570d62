"""A training run from data to files."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import xxhash

from kvrag.packet import digest_fields
from kvrag.qa import QuestionSet
from kvrag.qa.prompt_template import PromptTemplate
from kvrag.training.checkpoint import make_folder, write_whole
from kvrag.training.fused import fused_norms
from kvrag.training.log import plot_log
from kvrag.training.loop import Trained, train
from kvrag.training.mixture import Mixture, split
from kvrag.training.settings import TrainingSettings
from kvrag.training.task import Task

__all__ = ["RunResult", "data_digest", "run_training"]


@dataclass(frozen=True)
class RunResult:
    """What a run wrote.

    Attributes:
        path: the adapter file, or the reader's folder.
        trained: what the loop gave.
        log: JSON lines.
        picture: of the losses.
    """

    path: Path
    trained: Trained
    log: Path
    picture: Path


def run_training(
    task: Task,
    sets: Sequence[tuple[QuestionSet, float]],
    templates: Sequence[PromptTemplate],
    settings: TrainingSettings,
    folder: Path,
    *,
    accelerator: Any,
    describe: Mapping[str, Any],
    report: Callable[[int, float], None] = lambda step, loss: None,
    until: int | None = None,
) -> RunResult | None:
    """Train, or go on with an interrupted run, and write what came of it.

    Args:
        task: what to train.
        sets: data with shares.
        templates: prompts to train with.
        settings: of the run.
        folder: to write into; made if missing.
        accelerator: accelerate's.
        describe: whatever else the result depends on, such as the adapter's shape.
        report: called with every step's number and loss.
        until: stop before this step; returns None then.

    Raises:
        TrainingError: the run cannot begin, go on or be kept.
        DataError: there is nothing to train on.
    """
    identity = task.model.identity
    about = {
        "task": type(task).__name__,
        "model": task.model.name,
        "weights": identity.weights,
        "dtype": identity.dtype,
        "data": {questions.name: {"questions": len(questions), "share": share} for questions, share in sets},
        "templates": [template.name for template in templates],
        **describe,
        "settings": settings.model_dump(),
    }
    run = digest_fields(
        settings.digest,
        json.dumps(about | {"settings": None, "model": None}, sort_keys=True, default=str),
        *(data_digest(questions) for questions, _ in sets),
        *(repr(template) for template in templates),
        *(xxhash.xxh3_128_hexdigest(p.detach().cpu().numpy().tobytes()) for p in task.parameters.values()),
    )
    make_folder(folder, "to write into")
    halves = [(split(questions, settings.seed), share) for questions, share in sets]
    kept = Mixture([(half[0], share) for half, share in halves], settings, "training")
    aside = Mixture([(half[1], share) for half, share in halves], settings, "held out")
    begin = time.perf_counter()
    with fused_norms(task.model):
        trained = train(
            task, kept, aside, templates, settings, folder, accelerator=accelerator, run=run, report=report, until=until
        )
    accelerator.wait_for_everyone()
    if not trained.finished or not accelerator.is_main_process:
        return None
    best = min(trained.held_out, key=lambda pair: pair[1])
    told = about | {
        "date": date.today().isoformat(),
        "device": task.model.device_name,
        "processes": accelerator.num_processes,
        "steps_done": trained.steps,
        "best_step": best[0],
        "best_held_out_loss": round(best[1], 5),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    summary = f"{', '.join(q.name for q, _ in sets)}; {trained.steps} steps"
    path = task.save(folder, trained.values, summary)
    write_whole(folder / "run.json", (json.dumps(told, indent=1) + "\n").encode())
    plot_log(folder / "log.jsonl", folder / "loss.png", f"{type(task).__name__} of {task.model.name}")
    return RunResult(path, trained, folder / "log.jsonl", folder / "loss.png")


def data_digest(questions: QuestionSet) -> str:
    """Hexadecimal sha256 over everything in a question set."""
    parts: list[str] = [questions.name]
    for topic in questions.topics:
        parts += [topic.title, *topic.passages]
        parts += [f"{q.text}\0{q.answers}\0{q.passages}" for q in topic.questions]
    return digest_fields(*parts)
