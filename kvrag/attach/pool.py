"""Packets on the device: the least recently used go first, held ones never."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from itertools import pairwise

import torch

from kvrag.attach.arrivals import Arrivals
from kvrag.attach.lane import Geometry
from kvrag.attach.slot import Slot
from kvrag.errors import PoolError, PoolFullError
from kvrag.packet import Packet, PacketKey

__all__ = ["DevicePool", "PoolHold"]

_ALIGNMENT = 256  # bytes; a multiple of every element size and of what the widest loads ask for
_STAGING = 64 << 20  # bytes; copies of this size take much longer than their launches


class DevicePool:
    """Packets in one arena of `capacity` bytes, each of them one contiguous extent. Thread-safe.

    Sizes are rounded up to 256 bytes. A hold evicts the least recently used packets that nobody holds, until the free
    bytes suffice, and gives each new packet the smallest hole that is large enough. If none is, the arena is compacted,
    and then all fit. So fragmentation costs a hold at most one compaction and no packet, and a hold fails only if its
    own bytes + the bytes of other held packets > capacity.

    Copies run on the device's current stream: passes launched before a compaction read the old places, those launched
    after it the new ones. So `hold`, `send_ahead` and `compact` belong to the thread that launches passes. Any thread
    may release.

    Args:
        geometry: of the model.
        dtype: of keys and values.
        device: where the arena is.
        capacity: bytes, rounded down to 256; a staging buffer of at most 64 MiB comes on top.
        arrivals: how packets get there.

    Attributes:
        arena: flat, of `dtype`.
        nbytes: bytes of packets in the arena.
        moves: compactions that moved something; addresses kept from before are stale.
    """

    def __init__(
        self,
        geometry: Geometry,
        dtype: torch.dtype,
        device: torch.device,
        capacity: int,
        arrivals: Arrivals | None = None,
    ) -> None:
        self.arrivals = arrivals or Arrivals(geometry.layers, device)
        self.capacity = capacity // _ALIGNMENT * _ALIGNMENT
        self.nbytes = self.moves = 0
        with torch.inference_mode(False):  # what is made in inference mode can be written only there
            self.arena = torch.empty(self.capacity // dtype.itemsize, dtype=dtype, device=device)
            self._staging = torch.empty(min(_STAGING, self.capacity), dtype=torch.uint8, device=device)
        self._geometry = geometry
        self._slots: OrderedDict[PacketKey, Slot] = OrderedDict()  # least recently used first
        self._pins: Counter[Slot] = Counter()  # holds of a slot, which may have been discarded since
        self._holes = {0: self.capacity} if self.capacity else {}  # sizes by address, in bytes
        self._lock = threading.RLock()

    def hold(self, packets: Iterable[Packet]) -> "PoolHold":
        """Put packets on the device, where they are not there yet, and keep them until the hold is released.

        Raises:
            PoolFullError: they do not fit beside what is held; the pool stays as it is.
            PoolError: a packet has another shape or dtype than the model's cache.
        """
        wanted = {packet.key: packet for packet in packets}
        with self._lock:
            missing = self._missing(wanted)
            if refusal := self._refusal(wanted, missing):
                raise refusal
            needed = sum(map(_size, missing))
            while self.capacity - self.nbytes < needed:
                oldest = next(k for k, slot in self._slots.items() if k not in wanted and slot not in self._pins)
                self._free(self._slots.pop(oldest))
            self._load(missing)
            slots = {key: self._slots.pop(key) for key in wanted}
            self._slots.update(slots)  # they are the most recently used ones now
            self._pins.update(slots.values())
        return PoolHold(self, slots)

    def send_ahead(self, packets: Iterable[Packet]) -> None:
        """Begin to copy packets that somebody will soon hold, if they fit; as `hold`, for the thread that launches."""
        with suppress(PoolFullError), self.hold(packets):
            self.arrivals.begin()

    def fits(self, packets: Iterable[Packet]) -> bool:
        """Whether a hold of these packets would succeed now."""
        wanted = {packet.key: packet for packet in packets}
        with self._lock:
            return self._refusal(wanted, self._missing(wanted)) is None

    def compact(self) -> None:
        """Move all packets towards the arena's start, held ones too, so that one hole is left."""
        with self._lock:
            self.arrivals.wait_for_all()
            self.moves += any(address < self.nbytes for address in self._holes)  # packets lie behind a hole
            self.arrivals.moves += 1
            distance = 0
            for (address, size), (end, _) in pairwise([*sorted(self._holes.items()), (self.capacity, 0)]):
                distance += size
                self._move(address + size, end, distance)
            end = 0
            for slot in self._by_address():
                slot.address = end
                end += slot.size
            self._holes = {end: self.capacity - end} if end < self.capacity else {}

    def discard(self, key: PacketKey) -> None:
        """Forget a packet; who holds it keeps it, and its bytes are free when the last hold has ended."""
        with self._lock:
            slot = self._slots.pop(key, None)
            if slot is not None and slot not in self._pins:
                self._free(slot)

    def check_integrity(self) -> None:
        """Compare the pool's books with its slots; raises `PoolError` that names the first fault."""
        with self._lock:
            slots = self._by_address()
            spans = [(0, 0), *((s.address, s.address + s.size) for s in slots), (self.capacity, self.capacity)]
            bounds = [(end, begin) for (_, end), (begin, _) in pairwise(spans)]
            for name, expected, found in (
                ("keys", [slot.key for slot in self._slots.values()], list(self._slots)),
                ("pins below 1", {}, {slot: pins for slot, pins in self._pins.items() if pins < 1}),
                ("unaligned slots", [], [s for s in slots if s.address % _ALIGNMENT or s.size % _ALIGNMENT]),
                ("slots over another or the arena's end", [], [(end, begin) for end, begin in bounds if begin < end]),
                ("holes", {end: begin - end for end, begin in bounds if begin > end}, self._holes),
                ("bytes of packets", sum(slot.size for slot in slots), self.nbytes),
            ):
                if found != expected:
                    raise PoolError(f"{name}: expected {expected}, found {found}; report this as a bug of kvrag")

    def _missing(self, wanted: Mapping[PacketKey, Packet]) -> list[Packet]:
        """Packets that are not there yet, the largest first."""
        layers, heads, dim = self._geometry.layers, self._geometry.kv_heads, self._geometry.head_dim
        missing = [packet for key, packet in wanted.items() if key not in self._slots]
        for packet in missing:
            shape, dtype = packet.shape, packet.dtype
            if shape[:3] + shape[4:] != (layers, 2, heads, dim) or dtype != self.arena.dtype:
                raise PoolError(
                    f"expected [{layers}, 2, {heads}, T, {dim}] of {self.arena.dtype}, found {packet}; build it anew"
                )
        return sorted(missing, key=_size, reverse=True)

    def _refusal(self, wanted: Mapping[PacketKey, Packet], missing: list[Packet]) -> PoolFullError | None:
        if not missing:
            return None
        sizes = [_size(packet) for packet in missing]
        present = {self._slots[key] for key in wanted if key in self._slots}
        needed = sum(sizes) + sum(slot.size for slot in present)
        pinned = sum(slot.size for slot in self._pins.keys() - present)
        if needed + pinned <= self.capacity:
            return None
        expected = f"{needed} bytes for packets, found {self.capacity} of which {pinned} are held; end other holds"
        if max(sizes) > self.capacity:
            expected = f"packets of at most {self.capacity} bytes, found one of {max(sizes)}; build smaller chunks"
        return PoolFullError(f"expected {expected} or raise device_memory", needed, self.capacity, pinned)

    def _load(self, packets: list[Packet]) -> None:
        """Give packets their places and begin to copy them; all of them or none."""
        placed = [(self._place(packet), packet) for packet in packets]
        try:
            self.arrivals.load([(slot.data, packet.data) for slot, packet in placed])
        except BaseException:
            for slot, _ in placed:
                self._free(self._slots.pop(slot.key))
            raise

    def _place(self, packet: Packet) -> Slot:
        size = _size(packet)
        if all(room < size for room in self._holes.values()):
            self.compact()
        room, address = min((room, address) for address, room in self._holes.items() if room >= size)
        slot = self._slots[packet.key] = Slot.of(packet, address, size, self.arena)
        del self._holes[address]
        if room > size:
            self._holes[address + size] = room - size
        self.nbytes += size
        return slot

    def _free(self, slot: Slot) -> None:
        """Make a slot's bytes a hole, one with the holes beside it."""
        begin, end = slot.address, slot.address + slot.size
        begin = next((address for address, size in self._holes.items() if address + size == begin), begin)
        end += self._holes.pop(end, 0)
        self._holes[begin] = end - begin
        self.nbytes -= slot.size

    def _by_address(self) -> list[Slot]:
        return sorted({*self._slots.values(), *self._pins}, key=lambda slot: slot.address)

    def _move(self, begin: int, end: int, distance: int) -> None:
        """Move bytes towards the start, in pieces that never overwrite what is still to be read."""
        arena, staged = self.arena.view(torch.uint8), distance < min(end - begin, len(self._staging))
        step = len(self._staging) if staged else distance
        pieces = arena[begin:end].split(step), arena[begin - distance : end - distance].split(step)
        for source, target in zip(*pieces, strict=True):
            target.copy_(self._staging[: len(source)].copy_(source) if staged else source)

    def _unpin(self, held: list[Slot]) -> None:
        """End a hold and empty its list, so that it cannot end twice."""
        with self._lock:
            for slot in held:
                if self._pins[slot] > 1:
                    self._pins[slot] -= 1
                    continue
                self._pins.pop(slot)
                if self._slots.get(slot.key) is not slot:
                    self._free(slot)
            held.clear()


class PoolHold(AbstractContextManager["PoolHold"]):
    """Packets that stay in their `slots` on the device until `release`, which leaving a `with` block calls."""

    def __init__(self, pool: DevicePool, slots: Mapping[PacketKey, Slot]) -> None:
        self.slots = slots
        self._pool, self._held = pool, list(slots.values())

    def release(self) -> None:
        """Let the packets go; calling it again does nothing."""
        self._pool._unpin(self._held)

    def __exit__(self, *error: object) -> None:
        self.release()


def _size(packet: Packet) -> int:
    """Bytes that a packet takes in the arena; one without rows takes a place too."""
    return -(-max(packet.nbytes, 1) // _ALIGNMENT) * _ALIGNMENT
