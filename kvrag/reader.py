"""Reads a prompt: which of it is packets, which is text, and where everything stands."""

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kvrag.adapter import Adapter
from kvrag.loading.loader import Fetched, PacketLoader
from kvrag.matching import Match, fingerprint
from kvrag.model import LanguageModel
from kvrag.narrowing import best_packets, narrowed, narrows, packet_keys
from kvrag.packet import Packet, PacketKey, Scope
from kvrag.prepared import Prepared
from kvrag.prompt import PacketSegment, Segment, segment_prompt, stripped
from kvrag.store import Hold, PacketStore
from kvrag.strategies import Strategy

__all__ = ["PromptReader", "place_segments"]

_log = logging.getLogger("kvrag")
_DOCUMENTS_KEPT = 64


class PromptReader:
    """Turns final prompt strings into segments whose packets are in host memory.

    Args:
        model: whose tokenizer and context window count.
        store: to find packets in.
        adapter: whose soft tokens stand between packets, if the strategy wants any.
        loader: brings packets into host memory.
    """

    def __init__(self, model: LanguageModel, store: PacketStore, adapter: Adapter | None, loader: PacketLoader) -> None:
        self._model = model
        self._store = store
        self._adapter = adapter
        self._loader = loader
        self._checked: set[tuple[PacketKey, int]] = set()
        self._documents: dict[str, None] = {}  # in the order of their last mention
        self._lock = threading.Lock()

    def read(
        self, text: str, strategy: Strategy, scope: Scope, documents: Sequence[str]
    ) -> tuple[Prepared, float, Fetched]:
        """The prompt, the milliseconds spent on matching, and how its packets were brought."""
        begin = time.perf_counter()
        found: list[Match[PacketKey]] = []
        if strategy.matches:
            found = self._store.matcher(scope).find(text, lambda digest: self._store.find(scope, digest))
        loading = time.perf_counter()
        texts = {match.value: text[match.start : match.end] for match in found}
        wanted = {key: known for key, known in texts.items() if self._holds(key, scope, known)}
        fetched = self._loader.fetch(wanted, scope)
        done = time.perf_counter()
        packets = {key: packet for key, packet in fetched.packets.items() if self._fits(packet, scope)}
        matches = [match for match in found if match.value in packets]
        missing = [(match.start, match.end) for match in found if match.value not in packets]
        if strategy.matches:
            missing += self._document_spans(text, [(m.start, m.end) for m in found], documents)
        segments = segment_prompt(
            text,
            matches,
            self._model.tokenizer,
            literal_spans=sorted(missing),
            chunk_ids=lambda key, _: packets[key].token_ids.tolist(),
        )
        missed = {key: known for key, known in texts.items() if key not in packets}
        chain = f"{scope.digest}/{strategy!r}"
        prepared = replace(place_segments(segments, strategy, self._adapter, packets, chain), missed=missed)
        return prepared, 1e3 * (time.perf_counter() - done + loading - begin), fetched

    def prefetch(self, texts: Iterable[str], scope: Scope) -> Hold:
        """Load the packets of documents and hold them; remember the documents either way."""
        keys: list[PacketKey] = []
        for text in stripped(texts):
            known = fingerprint(text)
            key = None if known is None else self._store.find(scope, known.digest)
            if key is not None:
                keys.append(key)
            with self._lock:
                self._documents.pop(text, None)
                self._documents[text] = None
                while len(self._documents) > _DOCUMENTS_KEPT:
                    del self._documents[next(iter(self._documents))]
        return self._store.hold(keys)

    def _holds(self, key: PacketKey, scope: Scope, text: str) -> bool:
        """Whether the packet is made of this text's tokens: its key follows from them."""
        known = (key, hash(text))
        if known not in self._checked:
            if scope.key(self._model.tokenizer.encode(text, literal=True)) != key:
                _log.warning("packet %s does not hold the text it is registered for; computing it instead", key[:12])
                return False
            self._checked.add(known)
        return True

    def _fits(self, packet: Packet, scope: Scope) -> bool:
        """Whether the packet has this model's shape."""
        g = self._model.geometry
        shape = (g.layers, 2, g.kv_heads, len(packet.token_ids) + scope.recipe.extra_tokens, g.head_dim)
        if tuple(packet.shape) == shape and packet.dtype == self._model.dtype:
            return True
        _log.warning("packet %s does not have this model's shape; computing its text instead", packet.key[:12])
        return False

    def _document_spans(
        self, text: str, taken: Sequence[tuple[int, int]], documents: Sequence[str]
    ) -> list[tuple[int, int]]:
        """Where texts known to be documents stand without a packet."""
        with self._lock:
            known = set(stripped(documents)) | self._documents.keys()
        spans: list[tuple[int, int]] = []
        for document in sorted(known - {""}, key=len, reverse=True):
            at = text.find(document)
            while at >= 0:
                end = at + len(document)
                if all(end <= a or b <= at for a, b in (*taken, *spans)):
                    spans.append((at, end))
                at = text.find(document, end)
        return spans


def place_segments(
    segments: Sequence[Segment],
    strategy: Strategy,
    adapter: Adapter | None,
    packets: Mapping[PacketKey, Packet],
    chain: str,
) -> Prepared:
    """The segments as a strategy arranges and places them.

    Args:
        segments: of a prompt, in order.
        strategy: how to treat its packets.
        adapter: whose soft tokens may stand between them.
        packets: of the packet segments.
        chain: digest of what computed states depend on besides the segments.
    """
    asks = not isinstance(segments[-1], PacketSegment)
    if not strategy.attaches:
        segments = [s.as_text() if isinstance(s, PacketSegment) else s for s in segments]
    elif isinstance(segments[-1], PacketSegment):  # a prompt ends in text, and no link comes behind it
        segments = [*segments[:-1], segments[-1].as_text()]
    arranged = strategy.arrange(segments, adapter)
    if isinstance(arranged[-1], PacketSegment):  # the first token is sampled from a computed row
        arranged[-1] = arranged[-1].as_text()
    soft = dict(adapter.embeddings) if adapter is not None else {}
    unplaced = Prepared(arranged, (), packets, soft, chain, strategy.keeps_computed, selection=strategy.selection)
    starts = strategy.starts(arranged, [unplaced.length(segment) for segment in arranged])
    scales = {"score_scale": strategy.score_scale, "merge_scale": strategy.merge_scale}
    placed = replace(unplaced, starts=starts, **scales)
    if not (keys := packet_keys(segments)):
        return placed
    if (then := strategy.narrowed) is not None:
        if not asks or not narrows(segments, strategy.top_n):  # nobody asks, or the second reading would be the first
            return place_segments(segments, then, adapter, packets, chain)

        def narrow(attention: Sequence[float]) -> Prepared:
            best = best_packets(attention, keys, strategy.top_n)
            again = place_segments(narrowed(segments, best), then, adapter, packets, chain)
            return replace(again, kept=tuple(best))

        return replace(placed, narrow=narrow)
    if strategy.fallback is not None:
        fallback = place_segments(segments, strategy.fallback, adapter, packets, chain)
        placed = replace(placed, fallback=replace(fallback, fell_back=True), doubts_below=strategy.doubts_below)
    return placed
