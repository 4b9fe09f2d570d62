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
from pydantic import BaseModel, ConfigDict, Field
from torch.nn.functional import kl_div, log_softmax

from kvrag.adapter import Adapter, AdapterHeader
from kvrag.batched import compute_rows, writing
from kvrag.errors import TrainingError
from kvrag.model import LanguageModel
from kvrag.packed_rows import NO_ANSWER, SOFT_PARTS, Branch, PackedRows, PromptTree
from kvrag.strategies import KVPacket
from kvrag.training.examples import Batch, BatchSizes
from kvrag.training.task import Task, low_rank
from kvrag.writer import Writer

__all__ = ["AdapterShape", "AdapterTask"]

_SCALE = 2.0
_BEGINNINGS = {
    "header": "\n\nThe following is a document of its own:\n\n",
    "trailer": "\n\nThis is the end of the document.\n\n",
    "link": "\n\nThe next document follows.\n\n",
}
"""What the soft tokens say before training."""


class AdapterShape(BaseModel):
    """Which parts an adapter has.

    Attributes:
        header: soft tokens in front of every chunk.
        trailer: soft tokens behind it.
        link: soft tokens computed at question time behind every packet.
        writer_rank: of the LoRA that is on while chunks are encoded; 0 is none.
        sink: tokens of a prompt's beginning that chunks are encoded behind and packets leave out: what every prompt
            begins with draws attention that no chunk should draw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: int = Field(default=8, ge=0, le=256)
    trailer: int = Field(default=8, ge=0, le=256)
    link: int = Field(default=0, ge=0, le=256)
    writer_rank: int = Field(default=16, ge=0, le=1024)
    sink: int = Field(default=1, ge=0, le=16)

    def count(self, part: str) -> int:
        """Soft tokens of a part."""
        return getattr(self, part)


class AdapterTask(Task):
    """Trains an adapter.

    Args:
        model: teacher and student.
        shape: of the adapter.
        seed: of the writer.
        question_tokens: at the end of every question that are predicted too; they say more often than short answers
            do what a packet has to tell.

    Raises:
        TrainingError: the adapter would have no parts.
    """

    def __init__(self, model: LanguageModel, shape: AdapterShape, seed: int = 0, question_tokens: int = 0) -> None:
        super().__init__(model)
        if not any((shape.header, shape.trailer, shape.link, shape.writer_rank)):
            raise TrainingError("expected an adapter with at least one part, found soft 0, link 0 and writer rank 0")
        self.strategy = KVPacket()
        self._question_tokens = question_tokens
        self._sink = model.prompt_beginning(shape.sink)
        self.writer: Writer | None = None
        self.parameters = {
            part: torch.nn.Parameter(_beginning(model, part, shape.count(part)))
            for part in SOFT_PARTS
            if shape.count(part)
        }
        self.soft = frozenset(self.parameters)
        self.placeholder = Adapter(self._header(""), {n: p.detach().cpu() for n, p in self.parameters.items()})
        if shape.writer_rank:
            self.writer, parameters = low_rank(model, shape.writer_rank, _SCALE, seed)
            self.parameters |= parameters

    @contextmanager
    def loss(self, batch: Batch) -> Iterator[torch.Tensor]:
        """KL(teacher || student) over the whole vocabulary, summed over the answer tokens."""
        assert batch.student is not None
        with torch.no_grad():
            wanted, _ = compute_rows(self.model, batch.teacher, None, batch.teacher.answer_rows)
            wanted = log_softmax(wanted.float(), -1)
        writer = self.writer and self.writer.to(self.model.device, self.model.dtype)
        with writing(self.model, writer, batch.student):
            logits = self.logits(batch.student)
            each = kl_div(log_softmax(logits.float(), -1), wanted, log_target=True, reduction="none").sum(-1)
            yield (each * (batch.teacher.answer_ids != NO_ANSWER)).sum()

    def pack(self, prompts: Sequence[PromptTree], sizes: BatchSizes | None = None) -> Batch:
        """Lay prompts out for teacher and student, ends of questions among what is to be predicted."""
        asked = [replace(p, branches=tuple(_asking(b, self._question_tokens) for b in p.branches)) for p in prompts]
        return super().pack(asked, sizes)

    def logits(self, rows: PackedRows) -> torch.Tensor:
        """The student's logits `[A, vocab]` at the answer tokens; the writer has to be on."""
        parts: list[torch.Tensor] = [self.parameters[part] for part in SOFT_PARTS if part in self.parameters]
        return compute_rows(self.model, rows, torch.cat(parts) if parts else None, rows.answer_rows)[0]

    def adapter(self, tensors: Mapping[str, torch.Tensor], trained_on: str = "") -> Adapter:
        """The adapter with these values, in bfloat16."""
        return Adapter(self._header(trained_on), {n: t.detach().to("cpu", torch.bfloat16) for n, t in tensors.items()})

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor], trained_on: str) -> Path:
        """Write `adapter.safetensors`."""
        path = folder / "adapter.safetensors"
        self.adapter(tensors, trained_on).save(path)
        return path

    def load(self, path: Path) -> Mapping[str, torch.Tensor]:
        """The tensors of an adapter file.

        Raises:
            AdapterError: it cannot be read, or was trained for another model.
        """
        adapter = Adapter.load(path)
        adapter.check_model(self.model.identity, self.model.hidden_size, self.model.linear_modules)
        if adapter.header.sink != self._sink:
            raise TrainingError(
                f"expected an adapter with a sink of {len(self._sink)} tokens in {path}, found one of "
                f"{len(adapter.header.sink)}; give the --sink that it was trained with"
            )
        return adapter.tensors

    def _header(self, trained_on: str) -> AdapterHeader:
        identity = self.model.identity
        return AdapterHeader(
            weights=identity.weights,
            config=identity.config,
            trained_on=trained_on,
            writer_scale=_SCALE,
            sink=self._sink,
        )


def _asking(branch: Branch, count: int) -> Branch:
    """The branch with the last tokens in front of its answer, if it has one, moved into the answer."""
    first = max(1, len(branch.ids) - count)
    return Branch(branch.ids[:first], (*branch.ids[first:], *branch.answer)) if branch.answer else branch


def _beginning(model: LanguageModel, part: str, count: int) -> torch.Tensor:
    """Embeddings `[count, hidden]` of a sentence in float32: its end for headers, its beginning for the others."""
    ids = model.tokenizer.encode(_BEGINNINGS[part])
    ids = (ids * (count // len(ids) + 1))[-count:] if part == "header" else (ids * (count // len(ids) + 1))[:count]
    return model.embed(torch.tensor(ids, device=model.device)).detach().float()
