"""A LoRA that turns a small chat model into a reader of several passages."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch.nn.functional import cross_entropy, softmax

from kvrag.adapter import Adapter
from kvrag.batched import compute_rows
from kvrag.errors import TrainingError
from kvrag.model import LanguageModel
from kvrag.packed_rows import NO_ANSWER, PackedRows
from kvrag.packet import Recipe
from kvrag.strategies import NoRecompute
from kvrag.training.checkpoint import make_folder, write_whole
from kvrag.training.examples import Batch
from kvrag.training.task import Task, low_rank

__all__ = ["ReaderTask"]

_SCALE = 2
_PEFT = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class _Isolated(NoRecompute):
    """Chunks that see the beginning of a prompt and themselves."""

    sink: tuple[int, ...] = ()

    def recipe(self, adapter: Adapter | None) -> Recipe:
        return Recipe(ids_before=self.sink, dropped=len(self.sink))


class ReaderTask(Task):
    """Trains a reader: the likelihood of given answers, with full attention and with chunks that see no other chunk.

    A model that always read everything puts into a chunk what the chunks before it said, and no adapter can know that
    of a chunk encoded alone. One that was also trained without, as Block-Attention does
    (https://arxiv.org/abs/2409.15355), answers from either.

    Args:
        model: to train for.
        rank: of the LoRA over every linear layer.
        seed: of the LoRA.
        isolated: share of the loss that is taken with isolated chunks.
    """

    def __init__(self, model: LanguageModel, rank: int = 16, seed: int = 0, isolated: float = 0.0) -> None:
        super().__init__(model)
        self.rank = rank
        self.reader, self.parameters = low_rank(model, rank, float(_SCALE), seed)
        self._isolated = isolated
        if isolated:
            self.strategy = _Isolated(model.prompt_beginning(1))
            self.passes = 2

    @contextmanager
    def loss(self, batch: Batch) -> Iterator[torch.Tensor]:
        """Cross-entropy, summed over the answer tokens.

        With isolated chunks it aims at the answer and, as much, at what the model itself says with full attention.
        """
        with self.reader.to(self.model.device, self.model.dtype).active(self.model.linear_modules()):
            full = self._logits(batch.teacher)
            loss = (1 - self._isolated) * _likelihood(full, batch.teacher)
            if batch.student is not None:
                isolated = self._logits(batch.student)
                both = _likelihood(isolated, batch.student) + _imitation(isolated, full.detach(), batch.student)
                loss = loss + self._isolated * both / 2
            yield loss

    def _logits(self, rows: PackedRows) -> torch.Tensor:
        return compute_rows(self.model, rows, None, rows.answer_rows)[0].float()

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor], trained_on: str) -> Path:
        """Write a folder in peft's format: `adapter_config.json` and `adapter_model.safetensors`, in bfloat16.

        Raises:
            TrainingError: it cannot be written.
        """
        path = folder / "reader"
        make_folder(path, "for the reader")
        named = {
            f"{_PEFT}{name.removeprefix('writer.')}": t.detach().to("cpu", torch.bfloat16).contiguous()
            for name, t in tensors.items()
        }
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": _SCALE * self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted({path.rsplit(".", 1)[-1] for path in self.reader.tensors}),
            "inference_mode": True,
        }
        weights = save(named, {"format": "pt", "trained_on": trained_on})
        write_whole(path / _WEIGHTS, weights)
        write_whole(path / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode())
        return path

    def load(self, path: Path) -> Mapping[str, torch.Tensor]:
        """The tensors of a folder in peft's format.

        Raises:
            TrainingError: it cannot be read.
        """
        try:
            tensors = load_file(str(path / _WEIGHTS))
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"expected a reader in {path}, found none that can be read: {error}") from error
        return {f"writer.{name.removeprefix(_PEFT)}": tensor for name, tensor in tensors.items()}


def _likelihood(logits: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    return cross_entropy(logits, rows.answer_ids, ignore_index=NO_ANSWER, reduction="sum")


def _imitation(logits: torch.Tensor, wanted: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    each = cross_entropy(logits, softmax(wanted, -1), reduction="none")
    return (each * (rows.answer_ids != NO_ANSWER)).sum()
