"""A LoRA that turns a small chat model into a reader of several passages."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch.nn.functional import cross_entropy, log_softmax, softmax

from kvrag.adapter import Adapter
from kvrag.batched import compute_rows, writing
from kvrag.errors import TrainingError
from kvrag.model import LanguageModel
from kvrag.packed_rows import NO_ANSWER, PackedRows
from kvrag.strategies import KVPacket
from kvrag.training.checkpoint import make_folder, write_whole
from kvrag.training.examples import Batch
from kvrag.training.parts import AdapterParts, AdapterShape
from kvrag.training.task import Task, low_rank

__all__ = ["BARE", "KVLINK", "ReaderTask", "companion_adapter"]

BARE = AdapterShape(header=0, trailer=0, link=0, writer_rank=0, sink=1)
"""Chunks that see the beginning of a prompt and themselves."""

KVLINK = AdapterShape(header=0, trailer=0, link=5, writer_rank=0, sink=0)
"""Chunks that see themselves, and link tokens behind each that see everything before them."""

_SCALE = 2
_PEFT = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_COMPANION = "companion.safetensors"
_READER, _WRITER = "reader.", "writer."


class ReaderTask(Task):
    """Trains a reader: the likelihood of given answers, read with full attention and out of packets.

    A model that always read everything puts into a chunk what the chunks before it said, and no adapter can know that
    of a chunk encoded alone. One that was also trained on chunks that do not see each other answers from either:
    Block-Attention (https://arxiv.org/abs/2409.15355) does it with bare chunks, KVLink
    (https://arxiv.org/abs/2502.16002) with link tokens behind them, which here are the same behind every chunk. With an
    adapter of any other shape, reader and adapter learn from each other. Where both ways of reading differ, they can be
    drawn towards each other, as R-Drop (https://arxiv.org/abs/2106.14448) does with two passes of one model.

    Args:
        model: to train for.
        rank: of the LoRA over every linear layer.
        seed: of the LoRA.
        share: of the loss that is taken with packets.
        shape: of the adapter that packets have, which is learnt too; by default they are bare chunks behind a sink.
        agreement: weight of the divergence between both ways of reading, which both of them learn from.
    """

    def __init__(
        self,
        model: LanguageModel,
        rank: int = 16,
        seed: int = 0,
        share: float = 0.0,
        shape: AdapterShape = BARE,
        agreement: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.rank = rank
        self.reader, learnt = low_rank(model, rank, float(_SCALE), seed)
        self.parameters = {f"{_READER}{name}": p for name, p in learnt.items()}
        self._share, self._agreement = share, agreement
        self._parts = AdapterParts(model, shape, seed + 1)
        if share:
            self.strategy, self.passes = KVPacket(), 2
            self.placeholder, self.soft = self._parts.placeholder, self._parts.soft
            self.parameters |= self._parts.parameters

    @contextmanager
    def loss(self, batch: Batch) -> Iterator[torch.Tensor]:
        """Cross-entropy, summed over the answer tokens.

        With packets it aims at the answer and, as much, at what the model itself says with full attention.
        """
        device, dtype, modules = self.model.device, self.model.dtype, self.model.linear_modules()
        with self.reader.to(device, dtype).active(modules):
            full = compute_rows(self.model, batch.teacher, None, batch.teacher.answer_rows)[0].float()
            loss = (1 - self._share) * _likelihood(full, batch.teacher)
            if batch.student is None:
                yield loss
                return
            with writing(self.model, self._parts.writer_on(device, dtype), batch.student):
                packets = self._parts.logits(batch.student).float()
                both = _likelihood(packets, batch.student) + _imitation(packets, full.detach(), batch.student)
                loss = loss + self._share * both / 2
                if self._agreement:
                    loss = loss + self._agreement * _divergence(packets, full, batch.student)
                yield loss

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor], trained_on: str) -> Path:
        """Write a folder in peft's format: `adapter_config.json` and `adapter_model.safetensors`, in bfloat16.

        What an adapter learnt along with it is written beside them, for the model with this reader
        (`companion_adapter`).

        Raises:
            TrainingError: it cannot be written.
        """
        path = folder / "reader"
        make_folder(path, "for the reader")
        named = {
            f"{_PEFT}{name.removeprefix(_READER + _WRITER)}": t.detach().to("cpu", torch.bfloat16).contiguous()
            for name, t in tensors.items()
            if name.startswith(_READER)
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
        if beside := {name: t for name, t in tensors.items() if not name.startswith(_READER)}:
            self._parts.adapter(beside, trained_on, self.model.identity).save(path / _COMPANION)
        return path

    def load(self, path: Path) -> Mapping[str, torch.Tensor]:
        """The tensors of a folder in peft's format; an adapter that it has not begins afresh.

        Raises:
            AdapterError: the adapter beside it cannot be read.
            TrainingError: it cannot be read, or its adapter has another sink.
        """
        try:
            tensors = load_file(str(path / _WEIGHTS))
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"expected a reader in {path}, found none that can be read: {error}") from error
        found = {f"{_READER}{_WRITER}{name.removeprefix(_PEFT)}": tensor for name, tensor in tensors.items()}
        if not self._share or not (path / _COMPANION).exists():
            return found | {name: p.detach() for name, p in self.parameters.items() if not name.startswith(_READER)}
        adapter = Adapter.load(path / _COMPANION)
        self._parts.check(adapter, str(path))
        return found | adapter.tensors


def companion_adapter(reader_folder: Path, merged: LanguageModel) -> Adapter | None:
    """The adapter that was learnt along with a reader, for the model that it was merged into; None without one.

    Raises:
        AdapterError: it cannot be read, or belongs to a model of another shape.
    """
    path, identity = reader_folder / _COMPANION, merged.identity
    if not path.exists():
        return None
    found = Adapter.load(path)
    header = found.header.model_copy(update={"weights": identity.weights, "config": identity.config})
    adapter = Adapter(header, found.tensors)
    adapter.check_model(identity, merged.hidden_size, merged.linear_modules)
    return adapter


def _likelihood(logits: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    return cross_entropy(logits, rows.answer_ids, ignore_index=NO_ANSWER, reduction="sum")


def _imitation(logits: torch.Tensor, wanted: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    return _summed(cross_entropy(logits, softmax(wanted, -1), reduction="none"), rows)


def _divergence(one: torch.Tensor, other: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    """The mean of KL(one || other) and KL(other || one)."""
    one, other = log_softmax(one, -1), log_softmax(other, -1)
    return _summed(((one.exp() - other.exp()) * (one - other)).sum(-1) / 2, rows)


def _summed(each: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    return (each * (rows.answer_ids != NO_ANSWER)).sum()
