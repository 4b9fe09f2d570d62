"""Where a run stands, in one safetensors file that is replaced whole or not at all."""

import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kvrag.errors import TrainingError
from kvrag.files import replace_file

__all__ = ["Checkpoint", "make_folder", "write_whole"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Checkpoint:
    """A run after `step` optimiser steps.

    Attributes:
        run: digest of everything the result depends on.
        step: steps done.
        values: of the parameters, by name.
        moments: AdamW's averages, by parameter and by `exp_avg` or `exp_avg_sq`.
        best: values of the parameters where the held-out loss was lowest.
        held_out: (step, loss) of every evaluation.
    """

    run: str
    step: int
    values: Mapping[str, torch.Tensor]
    moments: Mapping[str, Mapping[str, torch.Tensor]]
    best: Mapping[str, torch.Tensor]
    held_out: list[tuple[int, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it; the one before stays whole until this one is.

        Raises:
            TrainingError: it cannot be written.
        """
        tensors = {f"value/{n}": t for n, t in self.values.items()} | {f"best/{n}": t for n, t in self.best.items()}
        tensors |= {f"{moment}/{n}": t for n, of in self.moments.items() for moment, t in of.items()}
        told = {"run": self.run, "step": self.step, "held_out": self.held_out}
        named = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_whole(path, save(named, {"kvrag_checkpoint": json.dumps(told)}))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint | None":
        """The checkpoint in a file, or None when there is no file.

        Raises:
            TrainingError: it cannot be read.
        """
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                told: dict[str, Any] = json.loads((file.metadata() or {})["kvrag_checkpoint"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls._of(told, tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"expected a checkpoint in {path}, found a file that cannot be read ({error}); "
                "remove it to begin again, or choose another --out"
            ) from error

    @classmethod
    def _of(cls, told: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> "Checkpoint":
        parts: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in ("value", "best", *_MOMENTS)}
        for name, tensor in tensors.items():
            kind, _, parameter = name.partition("/")
            parts[kind][parameter] = tensor
        moments = {name: {moment: parts[moment][name] for moment in _MOMENTS} for name in parts["exp_avg"]}
        held_out = [(int(step), float(loss)) for step, loss in told["held_out"]]
        return cls(told["run"], told["step"], parts["value"], moments, parts["best"], held_out)


def make_folder(path: Path, purpose: str) -> None:
    """Make a folder, if it is not there.

    Raises:
        TrainingError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"expected a folder {purpose}, found {path}: {error}; choose another --out") from error


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file by another one, whole or not at all.

    Raises:
        TrainingError: it cannot be written; an older file is still there.
    """
    try:
        for begun in path.parent.glob(f".{glob.escape(path.name)}.*"):  # by a run that was killed while it wrote
            begun.unlink(missing_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise TrainingError(
            f"expected to write {path}, found: {error}; free some space and run the same command again: it goes on "
            "from the last checkpoint"
        ) from error
