"""Chunks to packets."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from kvrag.adapter import Adapter
from kvrag.errors import AdapterError, PromptError, PromptTooLongError
from kvrag.model import LanguageModel, Rows
from kvrag.packet import Packet, Scope
from kvrag.store.codecs import CODECS

__all__ = ["BuildReport", "Chunk", "Encoding", "batches", "encode_batch", "file_bytes", "pass_tokens", "tokenize_chunk"]

_PASS_TOKENS = {"cuda": 2048}
_HEADER = 4096  # bytes of a packet's file in front of the data


@dataclass
class BuildReport:
    """What `PacketEngine.build` did with every text it was given.

    Attributes:
        built: packets computed and stored.
        registered: texts that are known now and get their packet when prompts ask for it.
        left_out: texts that are known now, and whose packets the store has no room for.
        existing: texts whose packet was there already.
        existing_bytes: of these packets.
        too_short: texts under 32 characters, which get no packet and are always computed as text.
        rejected: (beginning of the text, reason) for texts that cannot have a packet.
        tokens: rows computed.
        bytes: written.
        seconds: of the whole call.
    """

    built: int = 0
    registered: int = 0
    left_out: int = 0
    existing: int = 0
    existing_bytes: int = 0
    too_short: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Chunk:
    """A text and its token ids."""

    text: str
    ids: Sequence[int]


def tokenize_chunk(model: LanguageModel, scope: Scope, text: str) -> Chunk:
    """The chunk's stripped text and its ids; text that spells a special token yields ordinary tokens.

    Raises:
        PromptError: there is nothing in it.
        PromptTooLongError: it does not fit into the context window.
    """
    text = text.strip()
    if not text:
        raise PromptError("expected a chunk with text, found an empty one; leave it out")
    ids = model.tokenizer.encode(text, literal=True)
    rows = len(ids) + scope.recipe.extra_tokens + scope.recipe.dropped
    if rows >= model.max_positions:
        raise PromptTooLongError(
            f"expected a chunk of fewer than {model.max_positions} tokens, the context window of {model.name}, "
            f"found {rows}; split it into smaller chunks"
        )
    return Chunk(text, ids)


def file_bytes(model: LanguageModel, codec: str, rows: int) -> int:
    """Bytes that a packet of so many rows takes on disk, a little more or less."""
    g = model.geometry
    return _HEADER + g.layers * CODECS[codec].nbytes((2, g.kv_heads, rows, g.head_dim), model.dtype) + 8 * rows


def pass_tokens(model: LanguageModel) -> int:
    """Rows of short chunks to compute in one pass: on a GPU, launching a pass takes as long as computing a thousand."""
    return _PASS_TOKENS.get(model.device.type, 1024)


def batches(chunks: Iterable[Chunk], tokens: int) -> Iterator[list[Chunk]]:
    """Groups of chunks that share a pass: at most `tokens` rows together, or a single longer chunk."""
    batch: list[Chunk] = []
    size = 0
    for chunk in chunks:
        if batch and size + len(chunk.ids) > tokens:
            yield batch
            batch, size = [], 0
        batch.append(chunk)
        size += len(chunk.ids)
    if batch:
        yield batch


def encode_batch(model: LanguageModel, adapter: Adapter | None, scope: Scope, chunks: Sequence[Chunk]) -> list[Packet]:
    """Encode every chunk alone, all of them in one pass without padding.

    Raises:
        AdapterError: the recipe wants what the adapter does not have.
    """
    rows = [_rows(model, adapter, scope, chunk) for chunk in chunks]
    with _writer(model, adapter, scope):
        model.forward(rows)
    return [_packet(chunk, r, scope) for chunk, r in zip(chunks, rows, strict=True)]


class Encoding:
    """A chunk on its way to a packet, encoded from the front in several passes. Belongs to the model's thread.

    Args:
        model: to encode with.
        adapter: as the recipe wants.
        scope: of the packet.
        chunk: to encode.

    Raises:
        AdapterError: the recipe wants what the adapter does not have.
    """

    def __init__(self, model: LanguageModel, adapter: Adapter | None, scope: Scope, chunk: Chunk) -> None:
        self._model, self._adapter, self._scope = model, adapter, scope
        self._rows = _rows(model, adapter, scope, chunk)

    def extend(self, tokens: int) -> None:
        """Compute on, until the first `tokens` tokens of the packet are there."""
        first, last = self._rows.lane.length, self._scope.recipe.dropped + tokens
        if last <= first:
            return
        soft: list[tuple[int, torch.Tensor]] = []
        for row, given in self._rows.soft:
            begin, end = max(row, first), min(row + len(given), last)
            if begin < end:
                soft.append((begin - first, given[begin - row : end - row]))
        piece = Rows(self._rows.lane, self._rows.ids[first:last], self._rows.positions[first:last], soft)
        with _writer(self._model, self._adapter, self._scope):
            self._model.forward([piece], recorded=False)  # a recorded pass knows no writer

    def kv(self, first: int, last: int) -> torch.Tensor:
        """`[L, 2, H, last - first, D]` of computed tokens, in host memory."""
        dropped = self._scope.recipe.dropped
        return _to_host(self._rows.lane.own(dropped + first, dropped + last))


def _rows(model: LanguageModel, adapter: Adapter | None, scope: Scope, chunk: Chunk) -> Rows:
    """Everything that is computed for a chunk, in a lane of its own."""
    recipe = scope.recipe
    if recipe.uses_adapter and (adapter is None or (recipe.writer and not adapter.rank)):
        raise AdapterError(
            f"expected an adapter with {'a writer' if recipe.writer else 'soft tokens'}, as the recipe wants, found "
            f"{'none' if adapter is None else 'one without'}; pass the adapter that the recipe was made from"
        )
    soft: list[tuple[int, torch.Tensor]] = []
    ids = [*recipe.ids_before, *[0] * recipe.soft_before, *chunk.ids, *[0] * recipe.soft_after, *recipe.ids_after]
    for name, count, row in (
        ("header", recipe.soft_before, len(recipe.ids_before)),
        ("trailer", recipe.soft_after, len(recipe.ids_before) + recipe.soft_before + len(chunk.ids)),
    ):
        if count and adapter is not None:
            soft.append((row, adapter.soft(name)[:count].to(model.device, model.dtype)))
    return Rows(model.new_lane(len(ids)), ids, range(len(ids)), soft)


def _writer(model: LanguageModel, adapter: Adapter | None, scope: Scope) -> AbstractContextManager[None]:
    if adapter is None or not scope.recipe.writer:
        return nullcontext()
    return adapter.writer_on(model.device, model.dtype).active(model.linear_modules())


def _packet(chunk: Chunk, rows: Rows, scope: Scope) -> Packet:
    kv = _to_host(rows.lane.own(scope.recipe.dropped, len(rows.ids))).contiguous()
    ids = torch.tensor(chunk.ids, dtype=torch.int64).numpy()
    return Packet(scope.key(ids), scope, ids, kv)


def _to_host(kv: torch.Tensor) -> torch.Tensor:
    """The numbers in host memory; a GPU copies several times as fast into pinned memory."""
    if not kv.is_cuda:
        return kv.cpu()
    return torch.empty(kv.shape, dtype=kv.dtype, pin_memory=True).copy_(kv.contiguous())
