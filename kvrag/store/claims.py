"""Packets on their way into host memory: whoever comes first brings one, all others wait for him."""

import threading
from concurrent.futures import Future

from kvrag.packet import Packet, PacketKey
from kvrag.store.memory import HostMemory

__all__ = ["Claims"]


class Claims:
    """Who brings which packet into `memory`. Thread-safe."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._pending: dict[PacketKey, Future[Packet | None]] = {}
        self._lock = threading.Lock()

    def claim(self, key: PacketKey) -> tuple[Future[Packet | None], bool]:
        """The packet or where it will be, and whether the caller has to bring it: he ends with `settle`."""
        mine: Future[Packet | None] = Future()
        with self._lock:
            packet = self._memory.get(key)
            if packet is not None:
                mine.set_result(packet)
                return mine, False
            pending = self._pending.setdefault(key, mine)
        return pending, pending is mine

    def settle(self, key: PacketKey, packet: Packet | None) -> Packet | None:
        """End a claim: keep the packet, and give it to all who wait; None is a miss."""
        try:
            if packet is not None:
                self._memory.add(packet)
        finally:
            with self._lock:
                waiting = self._pending.pop(key)
            waiting.set_result(packet)
        return packet
