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
from typing import Unpack

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.matching import TextMatcher, fingerprint
from kvrag.packet import Packet, PacketKey, Scope
from kvrag.store import gc, integrity, usage
from kvrag.store.connection import CorruptIndexError
from kvrag.store.disk import DiskTier
from kvrag.store.index import Index
from kvrag.store.matchers import Matchers
from kvrag.store.memory import Hold, HostMemory
from kvrag.store.records import PacketRow, Problem, RepairReport, StoreStat
from kvrag.store.usage import StoreUsage

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
        if self._disk.touch(path) and self._index.add_texts(packet.scope.digest, packet.key, found):
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
        self._disk.touch(self._disk.path(scope.identity.digest, key))
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

    def remove(self, key: PacketKey) -> bool:
        """Delete a packet and forget its texts; False when there was none."""
        row = self._index.row(key)
        self._memory.discard(key)
        if row is None:
            return False
        try:
            with self._disk.taking_away(self._disk.path(row.identity, key)):
                removed = self._index.remove(key)  # before the file: a row always has one
                self._disk.remove(row)
        except OSError as error:
            raise StoreError(f"cannot remove packet {key}: {error}; check the disk and its permissions") from error
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

    def gc(self, texts: Iterable[str] | None, **options: Unpack[gc.GcOptions]) -> gc.GcReport:
        """Remove packets that no text in use leads to; options, result and errors: see `kvrag.store.gc.collect`.

        Safe while others build and answer, as long as no build takes longer than the grace period between asking for a
        packet and making its text one of those in use.
        """
        report = gc.collect(self._disk, self._index, texts, **options)
        for row in () if report.dry_run else report.removed:
            self._memory.discard(row.key)
        return report

    def usage(self) -> StoreUsage:
        """Where the bytes on disk are."""
        return usage.measure(self._disk, self._index)

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
        mine: Future[Packet | None] = Future()
        with self._lock:
            pending = self._loading.setdefault(key, mine)
        if pending is not mine:
            return pending.result()
        try:
            packet = self._read(key)
            if packet is not None:
                self._memory.add(packet)
            mine.set_result(packet)
            return packet
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._loading[key]

    def _read(self, key: PacketKey) -> Packet | None:
        row = self._index.row(key)
        if row is None:
            return None
        try:
            packet = self._disk.read(row)
            return replace(packet, kv=packet.kv.pin_memory()) if self._pinned else packet
        except CorruptPacketError as error:
            with self._lock:
                self._counts["corrupt"] += 1
            logger.warning("packet moved into quarantine: %s", error)
        except FileNotFoundError as error:
            logger.warning("packet is gone: %s", error)
        except OSError as error:  # a disk that answers later is no reason to forget a packet
            logger.warning("packet cannot be read: %s", error)
            return None
        with suppress(StoreError, OSError):  # a store that cannot be changed must not fail a reader: a miss is enough
            integrity.give_up(self._disk, self._index, row)
        return None
