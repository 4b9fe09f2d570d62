"""Prompts of random packets: everything a pass has to do, without a text."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from kvrag.adapter import Adapter
from kvrag.model import LanguageModel
from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.prepared import Prepared
from kvrag.prompt import PacketSegment, Segment, TextSegment
from kvrag.reader import place_segments
from kvrag.strategies import Strategy

__all__ = ["RandomPrompt"]

_SCOPE = Scope(Identity(config="", weights="", tokenizer="", rope="", dtype=""), Recipe(), "bench")


@dataclass(frozen=True)
class RandomPrompt:
    """Packets, then a question.

    Attributes:
        model: for which.
        packets: in host memory, pinned where there is a GPU.
        question: token ids.
    """

    model: LanguageModel
    packets: list[Packet]
    question: tuple[int, ...]

    @classmethod
    def draw(
        cls, model: LanguageModel, context: int, packet: int, question: int, recipe: Recipe = _SCOPE.recipe
    ) -> "RandomPrompt":
        """Draw packets of `packet` tokens, the last maybe shorter, that have `context` tokens together.

        Tokens that a recipe adds to a packet come on top.
        """
        scope = replace(_SCOPE, recipe=recipe)
        generator = torch.Generator(model.device).manual_seed(0)
        g = model.geometry
        vocabulary = int(model.config.vocab_size)
        found: list[Packet] = []
        for number, first in enumerate(range(0, context, packet)):
            tokens = min(packet, context - first)
            shape = (g.layers, 2, g.kv_heads, tokens + recipe.extra_tokens, g.head_dim)
            kv = torch.randn(shape, generator=generator, dtype=model.dtype, device=model.device).cpu()
            kv = kv.pin_memory() if model.device.type == "cuda" else kv
            ids = np.random.default_rng(number).integers(0, vocabulary, tokens)
            found.append(Packet(scope.key([number, *ids]), scope, ids, kv))
        ids = np.random.default_rng(context).integers(0, vocabulary, question)
        return cls(model, found, tuple(ids.tolist()))

    @cached_property
    def prepared(self) -> Prepared:
        """As the engine's reader leaves it."""
        segments: list[Segment] = [PacketSegment(p.key, tuple(p.token_ids.tolist()), 0, 0) for p in self.packets]
        starts = np.cumsum([0, *(p.tokens for p in self.packets)]).tolist()
        segments.append(TextSegment(self.question, 0, 0))
        return Prepared(segments, starts, {p.key: p for p in self.packets}, {}, "", False)

    def prepared_by(self, strategy: Strategy, adapter: Adapter | None) -> Prepared:
        """As the engine's reader leaves it for a strategy."""
        packets = {p.key: p for p in self.packets}
        return place_segments(self.prepared.segments, strategy, adapter, packets, "")

    @property
    def nbytes(self) -> int:
        """Bytes of the packets."""
        return sum(packet.nbytes for packet in self.packets)

    @property
    def context(self) -> int:
        """Tokens of the packets."""
        return sum(packet.tokens for packet in self.packets)
