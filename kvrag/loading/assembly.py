"""Puts packets together from what is computed of them and what is loaded."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from kvrag.builder import Chunk, Encoding
from kvrag.errors import CorruptPacketError
from kvrag.loading.ends import BothEnds
from kvrag.loading.parts import Item, Part
from kvrag.loading.schedule import Schedule
from kvrag.packet import Packet, PacketKey, Scope
from kvrag.store.segments import PacketFile, ReadCancelledError

if TYPE_CHECKING:
    from kvrag.loading.loader import PacketLoader

__all__ = ["Assembly"]

_TURN = 0.005  # seconds of reading between two looks at whether anybody still wants it
_SWIFT = 0.05  # seconds; packets that load faster are read in one go, which nobody can interrupt


class Assembly:
    """The packets of one `PacketLoader.fetch` while they grow from both ends.

    The loading side writes into a block of its own, the computing side into a lane; a load that was given up therefore
    never meets what is computed in its place.

    Args:
        loader: that brings them.
        scope: of the packets.
        texts: by key.
        schedule: of who brings what.
    """

    def __init__(
        self, loader: "PacketLoader", scope: Scope, texts: Mapping[PacketKey, str | Chunk], schedule: Schedule
    ) -> None:
        self.ends = BothEnds(schedule, self.load, self.compute)
        self._loader, self._scope, self._texts, self._schedule = loader, scope, texts, schedule
        self._whole: dict[PacketKey, Packet] = {}
        self._opened: dict[PacketKey, Packet] = {}
        self._encodings: dict[PacketKey, Encoding] = {}
        self._chunks: dict[PacketKey, Chunk] = {}

    def load(self, part: Part) -> bool:
        """Load a part; False when it is not there. Belongs to the loading threads."""
        item, loader = part.item, self._loader
        begin = time.perf_counter()
        try:
            if part.whole and loader.live.now().load_s(item.nbytes) < _SWIFT and not loader.opened:
                return self._load_at_once(part)
            file = loader.store.open(item.key, cancelled=lambda: self.ends.ended or part.dropped, **loader.opened)
            if file is None:
                return self._load_at_once(part)
            with file:
                loader.live.opened(time.perf_counter() - begin)
                return self._load_from(file, part)
        except ReadCancelledError:
            return False
        except (CorruptPacketError, OSError) as error:
            loader.store.dismiss(item.key, error)
            return False

    def compute(self, parts: Sequence[Part]) -> None:
        """Compute parts in one pass of the model."""
        chunks = [self._chunk(part.item.key) for part in parts]
        if all(part.whole for part in parts):
            packets = self._loader.run(self._loader.encode, self._scope, chunks)
            self._whole |= {packet.key: packet for packet in packets}
            self._loader.announce(packets)
            return
        ((part, chunk),) = zip(parts, chunks, strict=True)
        self._loader.run(self._extend, part, chunk)

    def opened(self, item: Item) -> bool:
        """Whether some of the packet was read from its file in parts."""
        return item.key in self._opened

    def packet(self, item: Item) -> Packet:
        """The packet, once all of it is there."""
        if item.key in self._whole:
            return self._whole[item.key]
        if item.front == item.tokens:
            ids = torch.tensor(self._chunk(item.key).ids, dtype=torch.int64).numpy()
            kv = self._loader.run(self._encodings[item.key].kv, 0, item.tokens).contiguous()
            return Packet(item.key, self._scope, ids, kv)
        packet = self._opened[item.key]
        if item.interrupted:  # somebody may still be writing into this one
            packet = replace(packet, data=packet.data.clone())
        if item.front:  # loaded in parts, and so as it is
            packet.kv[:, :, :, : item.front] = self._loader.run(self._encodings[item.key].kv, 0, item.front)
        return packet

    def _load_at_once(self, part: Part) -> bool:
        begin = time.perf_counter()
        packet = self._loader.store.read(part.item.key)
        if packet is None or (not part.whole and not self._made_whole(part)):
            return False
        self._loader.rates_of(part.item).loaded(packet.nbytes, time.perf_counter() - begin)
        self._whole[part.item.key] = packet
        self._loader.announce([packet])
        return True

    def _load_from(self, file: PacketFile, part: Part) -> bool:
        key = part.item.key
        if not part.whole and not file.splits and not self._made_whole(part):
            return False
        with self.ends.lock:
            if key not in self._opened:
                self._opened[key] = file.new_packet()
            packet = self._opened[key]
        if not part.whole:
            begin = time.perf_counter()
            file.read_tokens(part.first, part.last, packet.data)
            self._loader.live.loaded(round(part.left), time.perf_counter() - begin)
            return True
        layers, layer = range(file.header.shape[0]), file.nbytes / file.header.shape[0]
        while layers:
            begin, together = time.perf_counter(), max(1, int(_TURN * self._loader.live.now().bandwidth / layer))
            read, layers = layers[:together], layers[together:]
            file.read_layers(read, packet)
            self._loader.live.loaded(round(layer * len(read)), time.perf_counter() - begin)
            with self.ends.lock:
                self._schedule.moved(part, time.monotonic(), layer * len(layers))
        if not part.dropped:
            self._loader.announce([packet])
        return True

    def _made_whole(self, part: Part) -> bool:
        with self.ends.lock:
            return self._schedule.load_whole(part)

    def _extend(self, part: Part, chunk: Chunk) -> None:
        loader, key = self._loader, part.item.key
        if key not in self._encodings:
            self._encodings[key] = Encoding(loader.model, loader.adapter, self._scope, chunk)
        loader.extend(self._encodings[key], part.first, part.last)

    def _chunk(self, key: PacketKey) -> Chunk:
        text = self._texts[key]
        if isinstance(text, Chunk):
            return text
        if key not in self._chunks:
            self._chunks[key] = Chunk(text, self._loader.model.tokenizer.encode(text, literal=True))
        return self._chunks[key]
