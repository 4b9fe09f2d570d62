"""How many bytes of packet files a disk tier keeps, and which ones make room."""

import logging
import os
import threading
from collections import deque
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kvrag.errors import StoreError
from kvrag.packet import PacketKey
from kvrag.store.index import Index
from kvrag.store.memory import HostMemory
from kvrag.store.metrics import StoreMetrics
from kvrag.store.publishing import key_of
from kvrag.store.records import PacketRow
from kvrag.store.uses import NEVER, UseCounts

__all__ = ["DiskBudget", "PacketFile", "packet_files"]

PATIENCE = 64  # files in a row that had to stay, after which the others most likely have to as well

logger = logging.getLogger("kvrag.store")


@dataclass(frozen=True)
class PacketFile:
    """A packet file.

    Attributes:
        path: where it is.
        key: of the packet.
        size: bytes.
        used: when it was last, in nanoseconds since the epoch.
        heat: how much prompts use it, see `UseCounts`.
    """

    path: Path
    key: PacketKey
    size: int
    used: int
    heat: float = NEVER


class DiskBudget:
    """At most `capacity` bytes of packet files; the least used go first. Thread-safe.

    Where uses are counted, these are the ones with the least heat, elsewhere the least recently used. What stays, even
    beyond the budget: packets held in this process, the one written last, and while a remote is open what it does not
    have yet. A file that goes takes its row along, unless a remote has the packet. Its texts stay known: their packet
    can be built again when prompts ask for it.

    Files are listed once, and again when an eighth of the budget was written since: that is how far several processes
    may be mistaken about each other. When a file was used last is its access time, which the disk tier sets itself.

    Args:
        folder: of the packet files.
        capacity: bytes; None for no limit.
        uses: of packets, by prompts.
        remote: name of the remote that is open, if any.
    """

    def __init__(
        self,
        folder: Path,
        capacity: int | None,
        *,
        index: Index,
        memory: HostMemory,
        metrics: StoreMetrics,
        uses: UseCounts,
        remote: str | None,
    ):
        self.capacity = capacity
        self._folder = folder
        self._index = index
        self._memory = memory
        self._evictions = metrics.evictions.labels("disk")
        self._uses = uses
        self._remote = remote
        self._files: deque[PacketFile] = deque()
        self._nbytes: int | None = None
        self._written = 0
        self._lock = threading.Lock()

    def added(self, row: PacketRow) -> None:
        """Count a file that was written, and make room for it."""
        with self._lock:
            self._written += row.bytes
            if self._nbytes is not None:
                self._nbytes += row.bytes
        self.enforce(keep=row.key)

    def enforce(self, keep: PacketKey | None = None) -> None:
        """Bring the files back into the budget, as far as they may go; what goes wrong is logged."""
        if self.capacity is None:
            return
        try:
            with self._lock:
                self._enforce(self.capacity, self._memory.pinned() | {keep})
        except (StoreError, OSError) as error:  # no reason to fail whoever put or read a packet
            logger.warning("no room can be made in %s: %s", self._folder, error)

    def has_room(self, key: PacketKey, nbytes: int) -> bool:
        """Whether a packet of so many bytes finds room if only packets with less heat than its own have to go.

        With a remote it always does, since nothing that goes is lost.

        Raises:
            StoreError: uses are not known.
        """
        if self.capacity is None or self._remote is not None:
            return True
        heat, stay = self._uses.heat(key), self._memory.pinned()
        with self._lock:
            room = self.capacity - self._listed(self.capacity)
            for file in self._files:
                if room >= nbytes or file.heat >= heat:
                    break
                if file.key not in stay and self._uses.heat(file.key) < heat:
                    room += file.size
        return room >= nbytes

    def _enforce(self, capacity: int, stay: Container[PacketKey | None]) -> None:
        self._nbytes = self._listed(capacity)
        patience = min(PATIENCE, 2 * len(self._files))
        while self._nbytes > capacity and self._files and patience:
            file = self._files.popleft()
            now = replace(file, used=_used(file.path), heat=self._heat(file.key))
            if (now.heat, now.used) <= (file.heat, file.used) and file.key not in stay and self._evict(file):
                self._nbytes -= file.size
            else:  # used since it was listed, or it has to stay: its turn comes last
                self._files.append(now)
                patience -= 1

    def _listed(self, capacity: int) -> int:
        """Bytes of the files, which are listed if that is long ago."""
        if self._nbytes is None or self._written > capacity // 8:
            return self._list()
        return self._nbytes

    def _list(self) -> int:
        """List the files; their bytes."""
        heats = self._heats()
        files = [replace(file, heat=heats.get(file.key, NEVER)) for file in packet_files(self._folder)]
        files.sort(key=lambda file: (file.heat, self._memory.has(file.key), file.used))  # those in memory are in use
        self._files, self._written = deque(files), 0
        self._nbytes = sum(file.size for file in files)
        return self._nbytes

    def _heats(self) -> dict[PacketKey, float]:
        try:
            return self._uses.heats()
        except StoreError as error:  # no reason to let the files grow beyond the budget
            logger.warning("the least recently used packets make room: %s", error)
            return {}

    def _heat(self, key: PacketKey) -> float:
        with suppress(StoreError):
            return self._uses.heat(key)
        return NEVER

    def _evict(self, file: PacketFile) -> bool:
        with self._index.exclusive():  # see `disk` on deleting files
            row = self._index.row(file.key)
            if row is None or (self._remote is not None and row.remote != self._remote):
                return False
            if not row.remote:
                self._index.remove(file.key, texts=False)
            file.path.unlink(missing_ok=True)
        self._evictions.inc()
        return True


def _used(path: Path) -> int:
    try:
        return path.stat().st_atime_ns
    except FileNotFoundError:  # another process was first
        return 0


def packet_files(folder: Path) -> Iterator[PacketFile]:
    """Every file below a folder that is named like a packet."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            key = key_of(path)
            with suppress(FileNotFoundError):
                if key is not None:
                    status = path.stat()
                    yield PacketFile(path, key, status.st_size, status.st_atime_ns)
