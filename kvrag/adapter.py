"""The trained adapter: what makes packets work out of context."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kvrag.errors import AdapterError
from kvrag.files import replace_file
from kvrag.packet import Identity, digest_fields
from kvrag.writer import Writer

__all__ = ["Adapter", "AdapterHeader"]

_FORMAT = 1


class AdapterHeader(BaseModel):
    """What an adapter file says about itself.

    Attributes:
        weights: the identity's digest of the weights it was trained for.
        config: the identity's digest of that model's configuration.
        trained_on: free text: data, steps, date.
        writer_scale: of the writer's updates: `writer_scale * B @ A`.
        sink: token ids that a chunk is encoded behind and its packet leaves out.
        format_version: of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    config: str
    trained_on: str = ""
    writer_scale: FiniteFloat = 1.0
    sink: tuple[int, ...] = ()
    format_version: int = _FORMAT


class Adapter:
    """What was trained for the chunks of one model; three forms, each optional, freely combined.

    *Soft tokens* around every chunk (KV Packet, arXiv 2604.13226), *link tokens* behind every packet, computed at
    question time (KVLink, arXiv 2502.16002), and a *writer*, a LoRA that is on while a chunk is encoded.

    Args:
        header: who it was trained for.
        tensors: embeddings `header`, `trailer` and `link`, each [n, hidden]; and for every layer the writer changes
            `writer.<module path>.lora_A.weight` [r, in] and `writer.<module path>.lora_B.weight` [out, r].

    Raises:
        AdapterError: a tensor of a wrong shape, one that is not finite, or half of a writer's pair.
    """

    def __init__(self, header: AdapterHeader, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.ndim != 2 or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                odd = int((~torch.isfinite(tensor)).sum())
                raise AdapterError(
                    f"expected a matrix of finite floating point numbers for {name!r}, found {list(tensor.shape)} "
                    f"{str(tensor.dtype).removeprefix('torch.')}, {odd} of them not finite; train or save it again"
                )
        self.header = header
        self.tensors = dict(tensors)
        self.writer = Writer.from_named(self.tensors, header.writer_scale)
        self.embeddings = {name: t for name, t in self.tensors.items() if not name.startswith("writer.")}
        self._placed: dict[tuple[torch.device, torch.dtype], Writer] = {}

    @classmethod
    def load(cls, path: str | Path) -> "Adapter":
        """Read an adapter file.

        Raises:
            AdapterError: it is missing, broken or of another format version.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                header = AdapterHeader.model_validate_json((file.metadata() or {}).get("kvrag_adapter", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValidationError) as error:
            raise AdapterError(f"expected an adapter file at {path}, found one that cannot be read: {error}") from error
        if header.format_version != _FORMAT:
            raise AdapterError(
                f"expected adapter format {_FORMAT}, found {header.format_version} in {path}; retrain or upgrade kvrag"
            )
        return cls(header, tensors)

    def save(self, path: str | Path) -> None:
        """Write the adapter file; an older one stays whole until the new one is.

        Raises:
            AdapterError: it cannot be written.
        """
        path = Path(path)
        metadata = {"kvrag_adapter": self.header.model_dump_json()}
        # copies, since safetensors refuses tensors that share memory
        data = save({name: t.detach().cpu().contiguous().clone() for name, t in self.tensors.items()}, metadata)
        try:
            replace_file(path, data)
        except OSError as error:
            raise AdapterError(
                f"expected to write the adapter to {path}, found: {error}; free some space or choose another folder"
            ) from error

    def soft(self, name: str) -> torch.Tensor:
        """The embeddings `[n, hidden]` of that name; n is 0 when the adapter has none."""
        return self.embeddings.get(name, torch.empty(0, 0))

    @property
    def rank(self) -> int:
        """Rank of the writer; 0 when the adapter has none."""
        return self.writer.rank

    def writer_on(self, device: torch.device, dtype: torch.dtype) -> Writer:
        """The writer as a model on that device, in that dtype, needs it; kept for the next call."""
        if (device, dtype) not in self._placed:
            self._placed[device, dtype] = self.writer.to(device, dtype)
        return self._placed[device, dtype]

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 over header and tensors; part of the identity of packets built with it."""
        parts: list[str | bytes] = [json.dumps(self.header.model_dump(), sort_keys=True)]
        for name, tensor in sorted(self.tensors.items()):
            data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            parts += [name, str(list(tensor.shape)), str(tensor.dtype), data]
        return digest_fields(*parts)

    def check_model(self, identity: Identity, hidden_size: int, linears: Callable[[], Mapping[str, Any]]) -> None:
        """Refuse a model this adapter was not trained for.

        Args:
            identity: of the model.
            hidden_size: channels of its embeddings.
            linears: gives its linear layers by path; only called for a writer, if all else fits.

        Raises:
            AdapterError: naming what differs.
        """
        for name, tensor in self.embeddings.items():
            if tensor.shape[1] != hidden_size:
                raise AdapterError(
                    f"expected an adapter with {hidden_size} channels, found {tensor.shape[1]} in {name!r}; "
                    "it was trained for another model"
                )
        differing = [f for f in ("weights", "config") if getattr(self.header, f) != getattr(identity, f)]
        if differing:
            raise AdapterError(
                f"expected an adapter trained for this model, found one whose {' and '.join(differing)} differ; "
                "train one for this model, or choose adapter='none'"
            )
        if self.rank:
            self.writer.check_modules(linears())
