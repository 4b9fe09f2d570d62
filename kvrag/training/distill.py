"""KV Packet's self-supervised distillation: packets shall make the model answer as if it had read everything.

The teacher is the model itself on plain text with full attention; the student sees packets. Both are frozen: only the
adapter learns, from the divergence of their next-token distributions on the answer. KV Packet
(https://arxiv.org/abs/2604.13226), with two parts added: link tokens after each packet, which are KVLink's idea
(https://arxiv.org/abs/2502.16002) on a frozen model, and a writer, a LoRA that is on only while chunks are encoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from kvrag.adapter import Adapter
from kvrag.batched import compute_rows, writing
from kvrag.errors import TrainingError
from kvrag.model import LanguageModel
from kvrag.packed_rows import NO_ANSWER, Branch, PackedRows, PromptTree
from kvrag.strategies import KVPacket
from kvrag.training.examples import Batch, BatchSizes
from kvrag.training.parts import AdapterParts, AdapterShape
from kvrag.training.task import Task

__all__ = ["AdapterTask"]


class AdapterTask(Task):
    """Trains an adapter.

    Args:
        model: teacher and student.
        shape: of the adapter.
        seed: of the writer.
        question_tokens: at the end of every question that are predicted too; they say more often than short answers
            do what a packet has to tell.
        labels: weight of the answers' own likelihood beside the divergence: packets then learn the task as well, which
            the teacher is not the best at.

    Raises:
        TrainingError: the adapter would have no parts.
    """

    def __init__(
        self, model: LanguageModel, shape: AdapterShape, seed: int = 0, question_tokens: int = 0, labels: float = 0.0
    ) -> None:
        super().__init__(model)
        if not any((shape.header, shape.trailer, shape.link, shape.writer_rank)):
            raise TrainingError("expected an adapter with at least one part, found soft 0, link 0 and writer rank 0")
        self.strategy = KVPacket()
        self._question_tokens, self._labels = question_tokens, labels
        self._parts = AdapterParts(model, shape, seed)
        self.parameters, self.soft = self._parts.parameters, self._parts.soft
        self.writer, self.placeholder = self._parts.writer, self._parts.placeholder

    @contextmanager
    def loss(self, batch: Batch) -> Iterator[torch.Tensor]:
        """KL(teacher || student) over the whole vocabulary, summed over the answer tokens, and what labels add."""
        assert batch.student is not None
        with torch.no_grad():
            wanted, _ = compute_rows(self.model, batch.teacher, None, batch.teacher.answer_rows)
            wanted = log_softmax(wanted.float(), -1)
        with writing(self.model, self._parts.writer_on(self.model.device, self.model.dtype), batch.student):
            logits = self.logits(batch.student).float()
            each = kl_div(log_softmax(logits, -1), wanted, log_target=True, reduction="none").sum(-1)
            loss = (each * (batch.teacher.answer_ids != NO_ANSWER)).sum()
            if self._labels:
                labels = batch.student.labels
                loss = loss + self._labels * cross_entropy(logits, labels, ignore_index=NO_ANSWER, reduction="sum")
            yield loss

    def pack(self, prompts: Sequence[PromptTree], sizes: BatchSizes | None = None) -> Batch:
        """Lay prompts out for teacher and student, ends of questions among what is to be predicted."""
        asked = [replace(p, branches=tuple(_asking(b, self._question_tokens) for b in p.branches)) for p in prompts]
        return super().pack(asked, sizes)

    def logits(self, rows: PackedRows) -> torch.Tensor:
        """The student's logits `[A, vocab]` at the answer tokens; the writer has to be on."""
        return self._parts.logits(rows)

    def adapter(self, tensors: Mapping[str, torch.Tensor], trained_on: str = "") -> Adapter:
        """The adapter with these values, in bfloat16."""
        return self._parts.adapter(tensors, trained_on, self.model.identity)

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor], trained_on: str) -> Path:
        """Write `adapter.safetensors`."""
        path = folder / "adapter.safetensors"
        self.adapter(tensors, trained_on).save(path)
        return path

    def load(self, path: Path) -> Mapping[str, torch.Tensor]:
        """The tensors of an adapter file, also of one for the model with another reader, which is close enough.

        Raises:
            AdapterError: it cannot be read.
            TrainingError: it was trained with another sink.
        """
        adapter = Adapter.load(path)
        self._parts.check(adapter, str(path))
        return adapter.tensors


def _asking(branch: Branch, count: int) -> Branch:
    """The branch with the last tokens in front of its answer, if it has one, moved into the answer."""
    if not branch.answer:
        return branch
    first = max(1, len(branch.ids) - count)
    moved = branch.ids[first:]
    return replace(branch, ids=branch.ids[:first], answer=(*moved, *branch.answer), asked=len(moved))
