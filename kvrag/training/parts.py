"""The parts of an adapter while they are trained."""

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field

from kvrag.adapter import Adapter, AdapterHeader
from kvrag.batched import compute_rows
from kvrag.errors import TrainingError
from kvrag.model import LanguageModel
from kvrag.packed_rows import SOFT_PARTS, PackedRows
from kvrag.packet import Identity
from kvrag.training.task import low_rank
from kvrag.writer import Writer

__all__ = ["AdapterParts", "AdapterShape"]

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


class AdapterParts:
    """Soft tokens and writer in float32, as they are learnt.

    Args:
        model: to train for.
        shape: of the adapter.
        seed: of the writer.

    Attributes:
        parameters: by the names they have in an adapter file.
        soft: names of the soft tokens among them.
        writer: its updates, those of `parameters`; None without one.
        sink: token ids that chunks are encoded behind.
        placeholder: an adapter of this shape, to lay prompts out by.
    """

    def __init__(self, model: LanguageModel, shape: AdapterShape, seed: int = 0) -> None:
        self._model = model
        self.sink = model.prompt_beginning(shape.sink)
        self.writer: Writer | None = None
        self.parameters = {
            part: torch.nn.Parameter(_beginning(model, part, shape.count(part)))
            for part in SOFT_PARTS
            if shape.count(part)
        }
        self.soft = frozenset(self.parameters)
        self.placeholder = Adapter(self._header(model.identity, ""), {n: p.detach().cpu() for n, p in self._embedded()})
        if shape.writer_rank:
            self.writer, parameters = low_rank(model, shape.writer_rank, _SCALE, seed)
            self.parameters |= parameters

    def writer_on(self, device: torch.device, dtype: torch.dtype) -> Writer | None:
        """The writer as a pass of that dtype needs it; gradients flow."""
        return None if self.writer is None else self.writer.to(device, dtype)

    def logits(self, rows: PackedRows) -> torch.Tensor:
        """Logits `[A, vocab]` at the answer tokens of rows that a student lays out; the writer has to be on."""
        parts: list[torch.Tensor] = [p for _, p in self._embedded()]
        return compute_rows(self._model, rows, torch.cat(parts) if parts else None, rows.answer_rows)[0]

    def adapter(self, tensors: Mapping[str, torch.Tensor], trained_on: str, identity: Identity) -> Adapter:
        """The adapter with these values, in bfloat16, for the model of that identity."""
        rounded = {n: t.detach().to("cpu", torch.bfloat16) for n, t in tensors.items()}
        return Adapter(self._header(identity, trained_on), rounded)

    def check(self, adapter: Adapter, where: str) -> None:
        """Refuse to begin from an adapter whose chunks are encoded behind something else.

        Raises:
            TrainingError: its sink is of another length.
        """
        if adapter.header.sink != self.sink:
            raise TrainingError(
                f"expected an adapter with a sink of {len(self.sink)} tokens in {where}, found one of "
                f"{len(adapter.header.sink)}; give the --sink that it was trained with"
            )

    def _embedded(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(part, self.parameters[part]) for part in SOFT_PARTS if part in self.parameters]

    def _header(self, identity: Identity, trained_on: str) -> AdapterHeader:
        return AdapterHeader(
            weights=identity.weights,
            config=identity.config,
            trained_on=trained_on,
            writer_scale=_SCALE,
            sink=self.sink,
        )


def _beginning(model: LanguageModel, part: str, count: int) -> torch.Tensor:
    """Embeddings `[count, hidden]` of a sentence in float32: its end for headers, its beginning for the others."""
    ids = model.tokenizer.encode(_BEGINNINGS[part])
    ids = (ids * (count // len(ids) + 1))[-count:] if part == "header" else (ids * (count // len(ids) + 1))[:count]
    return model.embed(torch.tensor(ids, device=model.device)).detach().float()
