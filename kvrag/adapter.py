"""The trained adapter: what makes packets work out of context."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kvrag.errors import AdapterError
from kvrag.packet import Identity, digest_fields

__all__ = ["Adapter", "AdapterHeader"]

_FORMAT = 1


class AdapterHeader(BaseModel):
    """What an adapter file says about itself.

    Attributes:
        weights: the identity's digest of the weights it was trained for.
        config: the identity's digest of that model's configuration.
        trained_on: free text: data, steps, date.
        format_version: of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    config: str
    trained_on: str = ""
    format_version: int = _FORMAT


class Adapter:
    """Soft tokens around every chunk (KV Packet, arXiv 2604.13226), shared by all chunks of one model.

    Args:
        header: who it was trained for.
        tensors: `header` [n, hidden], `trailer` [n, hidden] and, for KVLink's idea, `link` [n, hidden]; each optional.

    Raises:
        AdapterError: a tensor of a wrong shape.
    """

    def __init__(self, header: AdapterHeader, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.ndim != 2 or not torch.isfinite(tensor).all():
                raise AdapterError(f"expected finite embeddings [n, hidden] for {name!r}, found {list(tensor.shape)}")
        self.header = header
        self.tensors = dict(tensors)

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
        """Write the adapter file."""
        metadata = {"kvrag_adapter": self.header.model_dump_json()}
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, str(path), metadata=metadata)

    def soft(self, name: str) -> torch.Tensor:
        """The embeddings `[n, hidden]` of that name; n is 0 when the adapter has none."""
        return self.tensors.get(name, torch.empty(0, 0))

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 over header and tensors; part of the identity of packets built with it."""
        parts: list[str | bytes] = [json.dumps(self.header.model_dump(), sort_keys=True)]
        for name, tensor in sorted(self.tensors.items()):
            data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            parts += [name, str(list(tensor.shape)), str(tensor.dtype), data]
        return digest_fields(*parts)

    def check_model(self, identity: Identity, hidden_size: int) -> None:
        """Refuse a model this adapter was not trained for.

        Raises:
            AdapterError: naming what differs.
        """
        for name, tensor in self.tensors.items():
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
