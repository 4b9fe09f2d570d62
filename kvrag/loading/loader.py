"""Packets into host memory, for everybody who asks, each of them once."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from kvrag.adapter import Adapter
from kvrag.builder import Chunk, Encoding, encode_batch, pass_tokens
from kvrag.completion import LoadReport
from kvrag.errors import StoreError
from kvrag.loading.assembly import Assembly
from kvrag.loading.division import Division
from kvrag.loading.parts import GRAIN, Item, Part
from kvrag.loading.rates import LiveRates, Rates
from kvrag.loading.schedule import Schedule
from kvrag.loading.settings import Loading
from kvrag.model import LanguageModel
from kvrag.packet import Packet, PacketKey, Scope
from kvrag.store import PacketRow, PacketStore
from kvrag.store.packet_store import REQUESTS

__all__ = ["Fetched", "PacketLoader", "guessed_rates"]

_log = logging.getLogger("kvrag")

_FLOPS = {"cuda": 2e14, "cpu": 2e11}  # a second, until something is measured
_TRIED = (2 * GRAIN, 4 * GRAIN, 8 * GRAIN)  # tokens, besides those of a full pass


class RunJob(Protocol):
    """Has the thread that owns the model call `job(*args)`; `Worker.run`."""

    def __call__(self, job: Callable[..., Any], *args: Any) -> "Future[Any]":
        """A future of what it returns."""
        ...


@dataclass
class Fetched:
    """Packets in host memory.

    Attributes:
        packets: by key; those that nobody could bring are missing.
        report: how they got there.
        unstored: packets that the store did not have, with their texts, for `write_back`.
    """

    packets: dict[PacketKey, Packet] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)
    unstored: list[tuple[Packet, str]] = field(default_factory=list)


class PacketLoader:
    """Brings the packets of prompts into host memory, by loading, by computing, or by both at once. Thread-safe.

    However many prompts ask for a packet, it is brought once: claims of the store see to that. Those that only a remote
    has are fetched several at a time, and what that takes is measured apart from the disk. What is computed goes
    through host memory on a GPU too, since it is kept there and written back; the pool copies it to the device again.

    Args:
        model: that computes.
        adapter: as recipes want.
        store: of the packets.
        run: of the worker that owns the model; a pass at a time, so that answers go on in between.
        loading: how.
        opened: options for `PacketStore.open`; with any, packets are read through them only.
        arrived: called by `run` with packets that have come into host memory whole, while others are still to come.
    """

    def __init__(
        self,
        model: LanguageModel,
        adapter: Adapter | None,
        store: PacketStore,
        run: RunJob,
        loading: Loading,
        opened: Mapping[str, Any] | None = None,
        arrived: Callable[[Sequence[Packet]], object] | None = None,
    ) -> None:
        self.model, self.adapter, self.store, self.loading = model, adapter, store, loading
        self.opened = dict(opened or {})
        self.live, self._remote = (LiveRates(loading.rates or guessed_rates(model)) for _ in range(2))
        self._run, self._arrived = run, arrived
        self._writer: ThreadPoolExecutor | None = None

    def rates_of(self, item: Item) -> LiveRates:
        """What is measured of loads from where a packet is."""
        return self._remote if item.remote else self.live

    def fetch(self, wanted: Mapping[PacketKey, str | Chunk], scope: Scope) -> Fetched:
        """Bring packets into host memory.

        Args:
            wanted: the texts that packets were built from, by key, or chunks that are tokenised already.
            scope: of all of them.

        Raises:
            EngineError: the engine was closed meanwhile.
        """
        begin = time.perf_counter()
        fetched = Fetched()
        claims = {key: self.store.claim(key) for key in wanted}
        mine = [key for key, (_, to_bring) in claims.items() if to_bring]
        if mine:
            self._bring({key: wanted[key] for key in mine}, scope, fetched)
        for key, (future, _) in claims.items():
            packet = future.result()
            if packet is not None:
                fetched.packets[key] = packet
        self.store.count(memory=len(wanted) - len(mine))
        fetched.report = replace(fetched.report, ms=1e3 * (time.perf_counter() - begin))
        return fetched

    def encode(self, scope: Scope, chunks: Sequence[Chunk]) -> list[Packet]:
        """Compute packets in one pass; belongs to the model's thread."""
        begin = time.perf_counter()
        packets = encode_batch(self.model, self.adapter, scope, chunks)
        rates, dropped = self.live.now(), scope.recipe.dropped
        work = sum(rates.work(0, packet.tokens + dropped) for packet in packets)
        self.live.computed(work, time.perf_counter() - begin)
        return packets

    def extend(self, encoding: Encoding, first: int, last: int) -> None:
        """Compute some more tokens of a packet; belongs to the model's thread."""
        begin = time.perf_counter()
        encoding.extend(last)
        if self.model.device.type == "cuda":
            encoding.kv(last - 1, last)  # or only the launches would be measured
        self.live.computed(self.live.now().work(first, last), time.perf_counter() - begin)

    def warm_up(self, scope: Scope) -> None:
        """Compute chunks that nobody keeps: kernels are compiled, and it is known what passes of all sizes take.

        Belongs to the model's thread.
        """
        room = self.model.max_positions - scope.recipe.extra_tokens - scope.recipe.dropped
        for tokens in (size for size in sorted({*_TRIED, pass_tokens(self.model)}) if size <= room):
            chunk = Chunk("", [0] * tokens)
            encode_batch(self.model, self.adapter, scope, [chunk])
            self.encode(scope, [chunk])
            encoding = Encoding(self.model, self.adapter, scope, chunk)
            encoding.extend(tokens // 2)
            encoding.extend(tokens)

    def run(self, job: Callable[..., Any], *args: Any) -> Any:
        """Have the model's thread do it, and wait."""
        return self._run(job, *args).result()

    def announce(self, packets: Sequence[Packet]) -> None:
        """Tell who wants to know that packets have come; does not wait."""
        if self._arrived is not None:
            self._run(self._arrived, packets)

    def write_back(self, unstored: Sequence[tuple[Packet, str]]) -> None:
        """Store packets in the background."""
        if unstored and self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="kvrag-write")
        for packet, text in unstored:
            assert self._writer is not None
            self._writer.submit(self._put, packet, text)

    def close(self) -> None:
        """Wait until everything is written back."""
        if self._writer is not None:
            self._writer.shutdown()

    def _put(self, packet: Packet, text: str) -> None:
        try:
            self.store.put(packet, [text])
        except StoreError as error:
            _log.warning("a packet was computed and cannot be kept: %s", error)

    def _bring(self, texts: Mapping[PacketKey, str | Chunk], scope: Scope, fetched: Fetched) -> None:
        """Bring claimed packets and settle every claim."""
        unsettled = dict.fromkeys(texts)
        try:
            rows = {key: self.store.row(key) for key in texts}
            items = [self._item(row, texts[key], scope) for key, row in rows.items() if row is not None]
            assembly = Assembly(self, scope, texts, self._schedule(items))
            assembly.ends.run()
            for item in items:
                packet = None if item.lost else assembly.packet(item)
                del unsettled[item.key]
                packet = self.store.settle(item.key, packet)
                if packet is not None and not item.nbytes:
                    text = texts[item.key]
                    fetched.unstored.append((packet, text.text if isinstance(text, Chunk) else text))
            fetched.report = LoadReport.of((item.front, item.tokens) for item in items if not item.lost)
            in_parts = sum(assembly.opened(item) for item in items)
            known = sum(item.nbytes > 0 and not item.lost for item in items)
            self.store.count(disk=in_parts, misses=len(texts) - known)
        finally:
            for key in unsettled:
                self.store.settle(key, None)

    def _schedule(self, items: Sequence[Item]) -> Schedule:
        remote = sum(item.remote for item in items)
        loads = max(1, min(REQUESTS, remote))
        if self.loading.deterministic:
            return Division(items, self.loading.rates or self.live.now(), self.loading.mode, loads)

        def rates() -> Rates:
            now = self.live.now()
            far = self._remote.now() if remote else now  # which decides, since it takes longest
            return now.model_copy(update={"bandwidth": far.bandwidth, "latency": far.latency})

        def dropped(part: Part, now: float) -> None:
            self.rates_of(part.item).loaded(round(part.left), now - part.moved)

        return Schedule(items, rates, self.loading.mode, dropped, loads, pass_tokens(self.model))

    def _item(self, row: PacketRow, text: str | Chunk, scope: Scope) -> Item:
        tokens = row.tokens
        if not tokens:  # a remote has listed it, and nobody here has read it yet
            ids = text.ids if isinstance(text, Chunk) else self.model.tokenizer.encode(text, literal=True)
            tokens = len(ids) + scope.recipe.extra_tokens
        tier = self.store.tier_of(row.key)
        splits = tier == "disk" and scope.identity.codec == "raw" and tokens > GRAIN
        return Item(row.key, tokens, row.bytes if tier else 0, splits, tier == "remote")


def guessed_rates(model: LanguageModel) -> Rates:
    """What a model's size suggests, until something is measured."""
    g = model.geometry
    parameters = model.streamed_bytes / model.dtype.itemsize
    per_token = 2 * parameters / _FLOPS.get(model.device.type, 2e11)
    return Rates(token_seconds=per_token, context=parameters / (2 * g.layers * g.heads * g.head_dim))
