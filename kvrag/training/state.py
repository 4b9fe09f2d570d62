"""Parameters and optimiser of a run, and what was best so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kvrag.batched import generate_greedily
from kvrag.errors import TrainingError
from kvrag.packed_rows import PromptTree
from kvrag.training.checkpoint import Checkpoint
from kvrag.training.examples import Batch
from kvrag.training.graphs import Graphs
from kvrag.training.settings import TrainingSettings
from kvrag.training.task import Task

__all__ = ["TrainingState"]

_LOWER = (
    "the last checkpoint is kept, but the same settings lead here again: lower the learning rates and choose another "
    "--out"
)


class TrainingState:
    """Where a run stands, begun afresh or taken up from the checkpoint in its folder.

    Args:
        task: with its parameters at their beginnings.
        settings: of the run.
        folder: of the checkpoint.
        run: digest of data, model and settings.
        accelerator: accelerate's.

    Raises:
        TrainingError: the checkpoint is another run's.
    """

    def __init__(self, task: Task, settings: TrainingSettings, folder: Path, run: str, accelerator: Any) -> None:
        self.task = task
        self.settings = settings
        self.path = folder / "checkpoint.safetensors"
        self.run = run
        self.accelerator = accelerator
        self.step = 0
        self.held_out: list[tuple[int, float]] = []
        self.best: Mapping[str, torch.Tensor] = {n: p.detach().cpu().clone() for n, p in task.parameters.items()}
        soft = [p for name, p in task.parameters.items() if name in task.soft]
        matrices = [p for name, p in task.parameters.items() if name not in task.soft]
        rates = ((soft, settings.soft_learning_rate), (matrices, settings.learning_rate))
        groups = [{"params": of, "lr": rate, "highest": rate} for of, rate in rates if of]
        on_gpu = task.model.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=on_gpu)
        self.graphs = Graphs(task) if on_gpu else None
        self.sums = torch.zeros(sum(p.numel() for p in task.parameters.values()) + 2, device=task.model.device)
        parts = self.sums[:-2].split([p.numel() for p in task.parameters.values()])
        for p, gradient in zip(task.parameters.values(), parts, strict=True):
            p.grad = gradient.view_as(p)
        task.model.freeze(checkpointing=settings.gradient_checkpointing)
        self._resume()

    @property
    def is_stale(self) -> bool:
        """Whether the last evaluations brought nothing."""
        values = [value for _, value in self.held_out]
        patience = self.settings.patience
        return bool(patience) and len(values) > patience and min(values[-patience:]) >= min(values[:-patience])

    def check(self, batches: Sequence[Batch] | Sequence[list[PromptTree]]) -> None:
        """Refuse held-out contexts in which there is nothing to predict."""
        found = sum(b.answer_tokens if isinstance(b, Batch) else len(b) for b in batches)
        if not self.accelerator.reduce(torch.tensor(float(found), device=self.task.model.device), reduction="sum"):
            raise TrainingError(
                f"expected answers to predict in {self.settings.held_out} held-out contexts, found none: no context "
                f"fits into max_tokens {self.settings.max_tokens}, or no question has an answer; give other data, or "
                "let the teacher answer"
            )

    def advance(self, batches: Sequence[Batch] | Sequence[list[PromptTree]]) -> tuple[float, float, int]:
        """One optimiser step; returns the loss per answer token, the norm of its gradients and the answer tokens."""
        self.sums.zero_()
        self.sums[-2], self.sums[-1] = self._sums(batches, backward=True)
        self.sums.copy_(self.accelerator.reduce(self.sums, reduction="sum"))
        total, count = self.sums[-2:].tolist()
        if not count:
            raise TrainingError(
                f"expected answer tokens in step {self.step + 1}, found none: no context fits into max_tokens "
                f"{self.settings.max_tokens}, or no question has an answer; give other data, or more contexts a step"
            )
        gradients = self.sums[:-2].div_(count)
        norm = float(gradients.norm())
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise TrainingError(
                f"expected a finite loss, found {total / count} with gradients of norm {norm} in step {self.step + 1}; "
                + _LOWER
            )
        gradients *= min(1.0, self.settings.clip / (norm + 1e-12))
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * self.settings.rate(self.step)
        self.optimizer.step()
        self.step += 1
        return total / count, norm, int(count)

    def evaluate(self, batches: Sequence[Batch] | Sequence[list[PromptTree]]) -> float:
        """The held-out loss per answer token; keeps the parameters when it is the lowest yet."""
        with torch.no_grad():
            loss, tokens = self._sums(batches, backward=False)
        sums = self.accelerator.reduce(torch.stack([loss, tokens]), reduction="sum")
        value = float(sums[0] / sums[1])
        if not math.isfinite(value):
            raise TrainingError(f"expected a finite held-out loss, found {value} after step {self.step}; {_LOWER}")
        if not self.held_out or value < min(v for _, v in self.held_out):
            self.best = {n: p.detach().cpu().clone() for n, p in self.task.parameters.items()}
        self.held_out.append((self.step, value))
        return value

    def checkpoint(self) -> None:
        """Write down where the run stands."""
        moments = {
            name: {m: self.optimizer.state[p][m] for m in ("exp_avg", "exp_avg_sq")}
            for name, p in self.task.parameters.items()
        }
        Checkpoint(self.run, self.step, self.task.parameters, moments, self.best, self.held_out).save(self.path)

    def _sums(
        self, batches: Sequence[Batch] | Sequence[list[PromptTree]], *, backward: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and number of answer tokens of this process's batches."""
        device = self.task.model.device
        loss, tokens = torch.zeros((), device=device), 0
        for given in batches:
            batch = given if isinstance(given, Batch) else self._answered(given)
            if not len(batch.teacher.answer_ids):
                continue
            tokens += batch.answer_tokens
            graphs = self.graphs if backward and batch.sizes is not None else None
            loss += graphs.backward(batch) if graphs else self._eager(batch.to(device), backward)
        return loss, torch.tensor(float(tokens), device=device)

    def _eager(self, batch: Batch, backward: bool) -> torch.Tensor:
        """A batch's loss; what it hangs on is gone afterwards, as nothing may hold it when a graph is recorded."""
        with self.task.loss(batch) as value:
            if backward:
                value.backward()
            return value.detach()

    def _answered(self, prompts: Sequence[PromptTree]) -> Batch:
        """The prompts with the answers that the teacher gives."""
        rows = Batch.of(prompts, None, None).teacher.to(self.task.model.device)
        found = generate_greedily(self.task.model, rows, None, None, self.settings.max_answer_tokens).tokens
        answered: list[PromptTree] = []
        for prompt, answers in zip(prompts, found, strict=True):
            pairs = zip(prompt.branches, answers, strict=False)  # prompts with fewer branches repeat their last
            answered.append(replace(prompt, branches=tuple(replace(b, answer=tuple(a)) for b, a in pairs)))
        return self.task.pack(answered)

    def _resume(self) -> None:
        kept = Checkpoint.load(self.path)
        if kept is None:
            return
        if kept.run != self.run:
            raise TrainingError(
                f"expected a checkpoint of this run in {self.path}, found one of other data, model or settings; "
                "choose another --out, or remove it to begin again"
            )
        self.step, self.held_out, self.best = kept.step, kept.held_out, kept.best
        for name, p in self.task.parameters.items():
            p.data.copy_(kept.values[name])
            moments = {m: t.to(p.device) for m, t in kept.moments[name].items()}
            self.optimizer.state[p] = {"step": torch.tensor(float(kept.step), device=p.device), **moments}
