"""The training loop, one for everything that is trained."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvrag.qa.prompt_template import PromptTemplate
from kvrag.training.data import Steps, held_out_batches
from kvrag.training.graphs import common_sizes
from kvrag.training.log import RunLog
from kvrag.training.mixture import Mixture
from kvrag.training.settings import TrainingSettings
from kvrag.training.state import TrainingState
from kvrag.training.task import Task

__all__ = ["Trained", "train"]

_SAMPLE = 64
"""Steps to find common sizes by."""


@dataclass(frozen=True)
class Trained:
    """What a run gave.

    Attributes:
        values: of the parameters where the held-out loss was lowest.
        steps: done in all.
        held_out: (step, loss per answer token) of every evaluation.
        seconds: of this process's part of the run.
        finished: False when it stopped at `until`.
    """

    values: Mapping[str, torch.Tensor]
    steps: int
    held_out: Sequence[tuple[int, float]]
    seconds: float
    finished: bool


def train(
    task: Task,
    mixture: Mixture,
    held_out: Mixture,
    templates: Sequence[PromptTemplate],
    settings: TrainingSettings,
    folder: Path,
    *,
    accelerator: Any,
    run: str,
    report: Callable[[int, float], None] = lambda step, loss: None,
    until: int | None = None,
) -> Trained:
    """Train, from where the checkpoint in `folder` stands, if there is one.

    Every step is drawn by its number and gradients are summed over processes, so that a run that was interrupted and
    taken up again, or spread over several GPUs, trains on the same examples as one in one go.

    Args:
        task: with its parameters at their beginnings.
        mixture: to learn from.
        held_out: to select the best step by.
        templates: to fill contexts into.
        settings: of the run.
        folder: of checkpoint and log.
        accelerator: accelerate's, which knows the processes.
        run: digest of data, model and settings; a checkpoint of another run is refused.
        report: called with every step's number and loss.
        until: stop before this step as an interrupt would, with a checkpoint.

    Raises:
        TrainingError: a loss that is not finite, a checkpoint of another run, or a full disk; the last checkpoint
            stays.
    """
    begin = time.perf_counter()
    process, processes = accelerator.process_index, accelerator.num_processes
    steps = Steps(task, mixture, templates, settings, process, processes)
    aside = held_out_batches(Steps(task, held_out, templates, settings), settings, process, processes)
    state = TrainingState(task, settings, folder, run, accelerator)
    state.check(aside)
    log = RunLog(folder / "log.jsonl", state.step) if accelerator.is_main_process else None
    last = min(settings.steps, until or settings.steps)
    on_gpu = task.model.device.type == "cuda" and not settings.gradient_checkpointing
    if settings.cuda_graphs and on_gpu and settings.answers == "given" and state.step < last:
        steps.sizes = common_sizes(steps.sample(_SAMPLE))
    for batches in () if state.step >= last or state.is_stale else steps.loaded(state.step):
        now = time.perf_counter()
        loss, norm, tokens = state.advance(batches)
        report(state.step, loss)
        if log:
            rate = settings.rate(state.step - 1)
            spent = time.perf_counter() - now
            log.add(step=state.step, loss=loss, rate=rate, norm=norm, answer_tokens=tokens, seconds=spent)
        if state.step % settings.evaluate_every == 0 or state.step == settings.steps:
            value = state.evaluate(aside)
            if log:
                log.add(step=state.step, held_out=value)
        ending = state.step >= last or state.is_stale
        if accelerator.is_main_process and (state.step % settings.checkpoint_every == 0 or ending):
            state.checkpoint()
        if ending:
            break
    finished = state.step >= settings.steps or state.is_stale
    return Trained(state.best, state.step, state.held_out, time.perf_counter() - begin, finished)
