"""The packet store: every chunk's packet on disk, the ones in use in host memory, all of them found by text."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.matching import TextMatcher, fingerprint
from kvrag.packet import Packet, PacketKey, Scope
from kvrag.store import integrity
from kvrag.store.connection import CorruptIndexError
from kvrag.store.disk import DiskTier
from kvrag.store.index import Index
from kvrag.store.matchers import Matchers
from kvrag.store.memory import Hold, HostMemory
from kvrag.store.records import PacketRow, Problem, RepairReport, StoreStat
from kvrag.store.segments import PacketFile

__all__ = ["PacketStore"]

logger = logging.getLogger("kvrag.store")


class PacketStore:
    """Packets in the folder `root`, shared with other threads and other processes.

    Nothing it returns is unchecked: a packet file that is not, byte for byte, what was written is moved into
    quarantine, counted and logged, and its packet is a miss. Texts of one scope are invisible in every other.

    Args:
        root: folder of the store, created if need be.
        memory_bytes: host memory for packets in use.

    Raises:
        StoreError: the folder cannot be used, or its index comes from a newer kvrag. A damaged index is logged here and
            raised by the first use, so that `repair` can be called.
    """

    def __init__(self, root: str | os.PathLike[str], *, memory_bytes: int = 2 << 30):
        self.root = Path(root).absolute()
        self._disk = DiskTier(self.root)
        self._index = Index(self.root / "index.sqlite")
        self._matchers = Matchers(self._index)
        self._memory = HostMemory(memory_bytes)
        self._pinned = False
        self._loading: dict[PacketKey, Future[Packet | None]] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        try:
            self._index.open()
        except CorruptIndexError as error:
            logger.error("%s", error)

    def put(self, packet: Packet, texts: Iterable[str]) -> None:
        """Keep a packet and the texts that lead to it; durable on return. A packet that is there only gains texts.

        Args:
            packet: what to keep; on any device.
            texts: looked up without the white space around them; those under 32 characters are skipped.

        Raises:
            StoreError: the packet contradicts itself, or the disk is full or cannot be written; nothing was lost.
        """
        found = [known for known in map(fingerprint, texts) if known]
        path = self._disk.path(packet.scope.identity.digest, packet.key)
        if path.exists() and self._index.add_texts(packet.scope.digest, packet.key, found):
            return
        with self._disk.publish(packet) as row:
            self._index.add(row, found)

    def get(self, key: PacketKey) -> Packet | None:
        """The packet, from host memory or else from disk; None when it is not there or not intact."""
        packet = self._memory.get(key) or self._load(key)
        with self._lock:
            self._counts["misses" if packet is None else "hits"] += 1
        return packet

    def has(self, key: PacketKey) -> bool:
        """Whether the packet is there, without reading it."""
        row = self._index.row(key)
        return row is not None and self._disk.path(row.identity, key).exists()

    def register(self, scope: Scope, text: str, key: PacketKey) -> None:
        """Let one more text lead to a packet; nothing happens for a text under 32 characters.

        Raises:
            StoreError: the scope has no such packet.
        """
        found = fingerprint(text)
        if found and not self._index.add_texts(scope.digest, key, [found]):
            raise StoreError(f"expected packet {key} in this scope, found none: put it before registering its texts")

    def find(self, scope: Scope, digest: bytes) -> PacketKey | None:
        """The packet that the text with this sha256 leads to within a scope."""
        return self._index.find(scope.digest, digest)

    def matcher(self, scope: Scope) -> TextMatcher:
        """The matcher of a scope's texts, up to date with the commits of every process.

        A text removed since may still be proposed: give `find` to it as `confirm`.
        """
        return self._matchers.of(scope)

    def hold(self, keys: Iterable[PacketKey]) -> Hold:
        """Load packets and keep them in host memory until the hold is released; those that are missing are left out."""
        packets = (self.get(key) for key in dict.fromkeys(keys))
        return self._memory.hold([packet for packet in packets if packet is not None])

    def pin_memory(self) -> None:
        """Read packets into memory that a GPU can copy from by itself, from now on."""
        self._pinned = True

    def row(self, key: PacketKey) -> PacketRow | None:
        """What the index says about a packet; its `texts` are not counted."""
        return self._index.row(key)

    def open(self, key: PacketKey, **options: Any) -> PacketFile | None:
        """The packet's file, to be read in parts; None when this disk has none.

        Args:
            key: of the packet.
            options: `read` and `cancelled` of `PacketFile`.

        Raises:
            CorruptPacketError: it is not what was written; tell `dismiss`.
            OSError: it cannot be read; tell `dismiss`.
        """
        row = self._index.row(key)
        path = None if row is None else self._disk.path(row.identity, key)
        return PacketFile(path, key=key, **options) if path is not None and path.exists() else None

    def read(self, key: PacketKey) -> Packet | None:
        """The packet from disk, for one who has claimed it; None when it is not there or not intact."""
        row = self._index.row(key)
        if row is None:
            return None
        try:
            return self._disk.read(row)
        except (CorruptPacketError, OSError) as error:
            self.dismiss(key, error)
            return None

    def dismiss(self, key: PacketKey, error: CorruptPacketError | OSError) -> None:
        """Act on an error of reading: what is not intact goes into quarantine, what is gone is forgotten."""
        if isinstance(error, CorruptPacketError):
            with self._lock:
                self._counts["corrupt"] += 1
            logger.warning("packet moved into quarantine: %s", error)
        elif isinstance(error, FileNotFoundError):
            logger.warning("packet is gone: %s", error)
        else:  # a disk that answers later is no reason to forget a packet
            logger.warning("packet cannot be read: %s", error)
            return
        row = self._index.row(key)
        with suppress(StoreError, OSError):  # a store that cannot be changed must not fail a reader: a miss is enough
            if row is not None:
                self._disk.quarantine(self._disk.path(row.identity, key))
            self._index.remove(key)

    def claim(self, key: PacketKey) -> tuple[Future[Packet | None], bool]:
        """A packet on its way into host memory, and whether the caller has to bring it there: he ends with `settle`."""
        mine: Future[Packet | None] = Future()
        with self._lock:
            packet = self._memory.get(key)
            if packet is not None:
                mine.set_result(packet)
                return mine, False
            pending = self._loading.setdefault(key, mine)
        return pending, pending is mine

    def settle(self, key: PacketKey, packet: Packet | None) -> Packet | None:
        """End a claim: keep the packet in host memory, pinned if need be, and give it to all who wait; None: a miss."""
        try:
            if packet is not None and self._pinned:
                packet = replace(packet, kv=packet.kv.pin_memory())
            if packet is not None:
                self._memory.add(packet)
        finally:
            with self._lock:
                waiting = self._loading.pop(key)
            waiting.set_result(packet)
        return packet

    def count(self, *, hits: int = 0, misses: int = 0) -> None:
        """Add to what `stat` says about packets asked for by `claim`."""
        with self._lock:
            self._counts.update(hits=hits, misses=misses)

    def remove(self, key: PacketKey) -> bool:
        """Delete a packet and forget its texts; False when there was none."""
        row = self._index.row(key)
        self._memory.discard(key)
        if row is None:
            return False
        removed = self._index.remove(key)  # before the file: a row always has one
        self._disk.remove(row)
        return removed

    def ls(self) -> Iterator[PacketRow]:
        """All packets, by key."""
        return self._index.rows()

    def stat(self) -> StoreStat:
        """Size of the store, and what this process has asked of it."""
        scopes, texts = self._index.totals()
        with self._lock:
            counts = dict(self._counts)
        return StoreStat(
            packets=sum(scope.packets for scope in scopes.values()),
            bytes=sum(scope.bytes for scope in scopes.values()),
            texts=texts,
            scopes=scopes,
            memory_bytes=self._memory.nbytes,
            hits=counts.get("hits", 0),
            misses=counts.get("misses", 0),
            corrupt=counts.get("corrupt", 0),
        )

    def verify(self, *, deep: bool = True) -> Iterator[Problem]:
        """Compare every file with its row, reading every byte if `deep`; changes nothing."""
        return integrity.verify(self._disk, self._index, deep=deep)

    def repair(self) -> RepairReport:
        """Make files and index agree again: adopt good files, quarantine bad ones, drop rows without files.

        Adopted packets are found by key only, until whoever knows their texts registers them again.
        """
        return integrity.repair(self._disk, self._index)

    def close(self) -> None:
        """Let go of the index; packets handed out stay valid."""
        self._index.close()

    def __enter__(self) -> "PacketStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PacketStore({str(self.root)!r})"

    def _load(self, key: PacketKey) -> Packet | None:
        """Read a packet once, however many threads ask for it meanwhile."""
        pending, mine = self.claim(key)
        if not mine:
            return pending.result()
        packet: Packet | None = None
        try:
            packet = self.read(key)
        finally:
            packet = self.settle(key, packet)
        return packet
