"""Packets in host memory: the least recently used go first, pinned ones never."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType

from kvrag.packet import Packet, PacketKey
from kvrag.store.metrics import StoreMetrics

__all__ = ["Hold", "HostMemory"]


@dataclass(eq=False)
class _Entry:
    packet: Packet
    pins: int = 0


class HostMemory:
    """At most `capacity` bytes of keys and values, except that pinned packets stay whatever they take. Thread-safe."""

    name = "memory"

    def __init__(self, capacity: int, metrics: StoreMetrics | None = None):
        self.capacity: int | None = capacity
        self._nbytes = 0
        self._evictions = (metrics or StoreMetrics()).evictions.labels(self.name)
        self._entries: OrderedDict[PacketKey, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: PacketKey) -> Packet | None:
        """The packet, which becomes the most recently used one."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.packet

    def has(self, key: PacketKey) -> bool:
        """Whether the packet is there; it does not count as used."""
        return key in self._entries

    @property
    def nbytes(self) -> int:
        """Bytes of the packets in it."""
        return self._nbytes

    def pinned(self) -> set[PacketKey]:
        """The packets that somebody holds."""
        with self._lock:
            return {key for key, entry in self._entries.items() if entry.pins}

    def add(self, packet: Packet) -> None:
        """Keep a packet for as long as there is room."""
        with self._lock:
            self._add(packet)
            self._evict()

    def hold(self, packets: Iterable[Packet]) -> "Hold":
        """Keep packets until the hold is released."""
        with self._lock:
            entries = {packet.key: self._add(packet) for packet in packets}
            for entry in entries.values():
                entry.pins += 1
            self._evict()
        return Hold(self, entries)

    def discard(self, key: PacketKey) -> None:
        """Forget a packet; who holds it keeps it."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._nbytes -= entry.packet.nbytes

    def _add(self, packet: Packet) -> _Entry:
        entry = self._entries.get(packet.key)
        if entry is None:
            entry = self._entries[packet.key] = _Entry(packet)
            self._nbytes += packet.nbytes
        self._entries.move_to_end(packet.key)
        return entry

    def _evict(self) -> None:
        if self.capacity is None or self._nbytes <= self.capacity:
            return
        for key in [key for key, entry in self._entries.items() if not entry.pins]:
            self._nbytes -= self._entries.pop(key).packet.nbytes
            self._evictions.inc()
            if self._nbytes <= self.capacity:
                return

    def _unpin(self, entries: Iterable[_Entry]) -> None:
        with self._lock:
            for entry in entries:
                entry.pins -= 1
            self._evict()


class Hold:
    """Packets that stay in host memory until `release`, which leaving a `with` block calls.

    Attributes:
        packets: what is held, by key; keys that were not in the store are missing.
    """

    def __init__(self, memory: HostMemory, entries: Mapping[PacketKey, _Entry]):
        self.packets: Mapping[PacketKey, Packet] = {key: entry.packet for key, entry in entries.items()}
        self._memory = memory
        self._entries = list(entries.values())
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let the packets go; calling it again does nothing."""
        with self._lock:
            entries, self._entries = self._entries, []
        self._memory._unpin(entries)

    def __enter__(self) -> "Hold":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Hold({len(self._entries)} packets)"
