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

__all__ = ["DiskBudget", "PacketFile", "packet_files"]

PATIENCE = 64  # files in a row that had to stay, after which the others most likely have to as well

logger = logging.getLogger("kvrag.store")


@dataclass(frozen=True)
class PacketFile:
    """A packet file: its size in bytes, and when it was used last, in nanoseconds since the epoch."""

    path: Path
    key: PacketKey
    size: int
    used: int


class DiskBudget:
    """At most `capacity` bytes of packet files; the least recently used go first. Thread-safe.

    What stays, even beyond the budget: packets held in this process, the one written last, and while a remote is open
    what it does not have yet. A file that goes takes its row and texts along, unless a remote has the packet.

    Files are listed once, and again when an eighth of the budget was written since: that is how far several processes
    may be mistaken about each other. When a file was used last is its access time, which the disk tier sets itself.

    Args:
        folder: of the packet files.
        capacity: bytes; None for no limit.
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
        remote: str | None,
    ):
        self.capacity = capacity
        self._folder = folder
        self._index = index
        self._memory = memory
        self._evictions = metrics.evictions.labels("disk")
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

    def _enforce(self, capacity: int, stay: Container[PacketKey | None]) -> None:
        if self._nbytes is None or self._written > capacity // 8:
            self._nbytes = self._list()
        patience = min(PATIENCE, 2 * len(self._files))
        while self._nbytes > capacity and self._files and patience:
            file = self._files.popleft()
            used = _used(file.path)
            if used <= file.used and file.key not in stay and self._evict(file):
                self._nbytes -= file.size
            else:  # used since it was listed, or it has to stay: its turn comes last
                self._files.append(replace(file, used=used))
                patience -= 1

    def _list(self) -> int:
        """List the files; their bytes."""
        files = list(packet_files(self._folder))
        files.sort(key=lambda file: (self._memory.has(file.key), file.used))  # those in memory are in use
        self._files, self._written = deque(files), 0
        return sum(file.size for file in files)

    def _evict(self, file: PacketFile) -> bool:
        with self._index.exclusive():  # see `disk` on deleting files
            row = self._index.row(file.key)
            if row is None or (self._remote is not None and row.remote != self._remote):
                return False
            if not row.remote:
                self._index.remove(file.key)
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
