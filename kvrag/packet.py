"""The one value that flows: a packet, what it was built from, and its name.

A packet is the KV cache of one chunk, encoded alone, together with everything needed to decide whether it may be used.
Its `PacketKey` is a digest over the model's `Identity`, the `Recipe`, the namespace and the chunk's token ids, so a
packet that carries the key asked for was built by the same model, in the same way, from the same tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NewType

import numpy as np
import torch
from kvrag_kernels.packet_attention.encoded import expand
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FORMAT_VERSION", "Identity", "Packet", "PacketHeader", "PacketKey", "Recipe", "Scope", "digest_fields"]

FORMAT_VERSION = 1

PacketKey = NewType("PacketKey", str)
"""Hexadecimal sha256, 64 characters."""


def digest_fields(*fields: str | bytes) -> str:
    """Hexadecimal sha256 over length-prefixed fields: no two different field lists share an input."""
    sha = hashlib.sha256()
    for field in fields:
        data = field.encode("utf-8", "surrogatepass") if isinstance(field, str) else field
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Identity(_Frozen):
    """Everything a packet's numbers depend on, besides its recipe and its tokens.

    Attributes:
        config: digest of the model's configuration.
        weights: digest of every parameter and buffer, active LoRAs and quantisation included; the same whether a
            bfloat16 checkpoint was loaded in bfloat16 or in float32.
        tokenizer: digest of the tokenizer.
        rope: digest of the rotary frequencies and the attention scaling.
        dtype: of keys and values, such as "bfloat16".
        adapter: digest of the adapter file, empty when the recipe uses none of it.
        codec: how the numbers are stored, by a name in `kvrag.store.codecs`.
        format_version: of the packet file.
    """

    config: str
    weights: str
    tokenizer: str
    rope: str
    dtype: str
    adapter: str = ""
    codec: str = "raw"
    format_version: int = FORMAT_VERSION

    @property  # not cached: `model_copy` would carry the old one over
    def digest(self) -> str:
        """Hexadecimal sha256 over all fields."""
        return digest_fields(*(str(value) for value in self.model_dump().values()))

    def differences(self, other: "Identity") -> list[str]:
        """Names of the fields in which two identities differ."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [name for name in mine if mine[name] != theirs[name]]


class Recipe(_Frozen):
    """How a strategy turns the token ids of a chunk into a packet; never depends on the other chunks of a prompt.

    The encoded sequence is `ids_before, soft_before, chunk, soft_after, ids_after`.

    Attributes:
        ids_before: token ids in front of the chunk, such as a sink.
        ids_after: token ids behind it.
        soft_before: number of the adapter's header embeddings to use.
        soft_after: number of the adapter's trailer embeddings to use.
        writer: whether the adapter's writer LoRA is on while the chunk is encoded.
        dropped: leading rows left out of the packet after encoding; the packet's keys start at this position.
    """

    ids_before: tuple[int, ...] = ()
    ids_after: tuple[int, ...] = ()
    soft_before: int = Field(default=0, ge=0)
    soft_after: int = Field(default=0, ge=0)
    writer: bool = False
    dropped: int = Field(default=0, ge=0)

    @property  # not cached: `model_copy` would carry the old one over
    def digest(self) -> str:
        """Hexadecimal sha256 over all fields."""
        return digest_fields(self.model_dump_json())

    @property
    def uses_adapter(self) -> bool:
        """Whether a packet built this way depends on the adapter file."""
        return bool(self.soft_before or self.soft_after or self.writer)

    @property
    def extra_tokens(self) -> int:
        """Rows of a packet beyond its chunk's own tokens (negative when more are dropped than added)."""
        added = len(self.ids_before) + len(self.ids_after) + self.soft_before + self.soft_after
        return added - self.dropped


@dataclass(frozen=True)
class Scope:
    """Which packets may serve a request: those of one identity, one recipe and one namespace."""

    identity: Identity
    recipe: Recipe
    namespace: str = "default"

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 that names the scope in a store's index."""
        return digest_fields(self.identity.digest, self.recipe.digest, self.namespace)

    def key(self, token_ids: Sequence[int] | np.ndarray) -> PacketKey:
        """The key of the packet built from a chunk's `token_ids` [T]."""
        ids = np.ascontiguousarray(token_ids, dtype="<i8").tobytes()
        return PacketKey(digest_fields(self.identity.digest, self.recipe.digest, self.namespace, ids))

    def differences(self, other: "Scope") -> list[str]:
        """Names of what two scopes differ in: fields of their identities, "recipe" and "namespace"."""
        own = [name for name in ("recipe", "namespace") if getattr(self, name) != getattr(other, name)]
        return [*self.identity.differences(other.identity), *own]


class PacketHeader(_Frozen):
    """What a packet file says about itself.

    Attributes:
        key: the packet's name; must follow from the fields below and the token ids.
        identity: of the model that wrote it.
        recipe: how it was built.
        namespace: the tenant it belongs to.
        shape: `[L, 2, H, T, D]` of keys and values.
        checksums: xxh3-128 of each layer's bytes as they are stored, hexadecimal.
        created: seconds since the epoch.
        raw_layers: those that the identity's codec would have damaged, and that are stored as they are.
        segments: xxh3-128 of each token segment (see `kvrag.store.segments`), hexadecimal; empty where a packet is read
            as a whole.
    """

    key: str
    identity: Identity
    recipe: Recipe
    namespace: str
    shape: tuple[int, int, int, int, int]
    checksums: tuple[str, ...]
    created: float
    raw_layers: tuple[int, ...] = ()
    segments: tuple[str, ...] = ()

    @property
    def scope(self) -> Scope:
        """The scope in which this packet may be used."""
        return Scope(self.identity, self.recipe, self.namespace)


@dataclass(frozen=True, eq=False)
class Packet:
    """The KV cache of one chunk. Immutable: nothing in kvrag writes to its numbers after it was built.

    Attributes:
        key: the packet's name.
        scope: where it may be used.
        token_ids: `[T_chunk]` int64, the chunk's own tokens (without what the recipe added).
        data: keys and values `[L, 2, H, T, D]`, contiguous; keys rotated for positions `offset .. offset + T - 1`. Or
            `[L, B]` uint8, layers in the bytes of the identity's codec, of which kernels read them; B is a multiple of
            16, and what is behind a layer's own bytes means nothing.
        encoded: shape `[L, 2, H, T, D]` of what such bytes stand for; None if `data` has it.
    """

    key: PacketKey
    scope: Scope
    token_ids: np.ndarray
    data: torch.Tensor
    encoded: torch.Size | None = None

    @property
    def kv(self) -> torch.Tensor:
        """`[L, 2, H, T, D]`; a copy where `data` has them in bytes."""
        return self.data if self.encoded is None else expand(self.data, self.encoded, self.form, self.dtype)

    @property
    def shape(self) -> torch.Size:
        """`[L, 2, H, T, D]`."""
        return self.data.shape if self.encoded is None else self.encoded

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values, not of their bytes."""
        return self.data.dtype if self.encoded is None else getattr(torch, self.scope.identity.dtype)

    @property
    def form(self) -> str:
        """What `data` holds: numbers as they are, which is "raw", or the bytes of the codec of this name."""
        return "raw" if self.encoded is None else self.scope.identity.codec

    @property
    def tokens(self) -> int:
        """Number of rows `T` a prompt gains by attaching this packet."""
        return self.shape[3]

    @property
    def encoded_ids(self) -> list[int]:
        """Token ids of its rows, those that the recipe added among them; 0 in the rows of an adapter's soft tokens."""
        recipe = self.scope.recipe
        before = [*recipe.ids_before, *[0] * recipe.soft_before]
        after = [*[0] * recipe.soft_after, *recipe.ids_after]
        return [*before, *self.token_ids.tolist(), *after][recipe.dropped :]

    @property
    def token_rows(self) -> tuple[int, int]:
        """The first of its rows that are tokens, between those of an adapter's soft tokens, and the one behind them."""
        recipe = self.scope.recipe
        first = len(recipe.ids_before) + recipe.soft_before - recipe.dropped if recipe.soft_before else 0
        behind = recipe.soft_after + len(recipe.ids_after) if recipe.soft_after else 0
        return first, self.tokens - behind

    @property
    def offset(self) -> int:
        """Position at which the first key was rotated."""
        return self.scope.recipe.dropped

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, as they are here."""
        return self.data.nbytes

    def __repr__(self) -> str:
        return f"Packet({self.key[:12]}, shape={list(self.shape)}, dtype={str(self.dtype)[6:]}, {self.form})"
