"""Packet files on disk: published whole or not at all, never changed, moved aside when they are bad.

    root/packets/<identity[:16]>/<key[:2]>/<key>.safetensors
    root/quarantine/<key>.<nanoseconds>.safetensors

A file is published before its row is written, and deleted only while the index is locked; so a writer who finds his
file there when he writes the row, with the index locked too, has a row with a file.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.matching import Fingerprint
from kvrag.packet import Packet, PacketKey
from kvrag.store.blocks import Allocator, BlockArena
from kvrag.store.budget import DiskBudget, packet_files
from kvrag.store.format import read_header, read_packet
from kvrag.store.index import Index
from kvrag.store.metrics import StoreMetrics
from kvrag.store.publishing import SUFFIX, create_temporary, make_folder, packet_path, write_file
from kvrag.store.records import PacketRow

__all__ = ["DiskTier"]

logger = logging.getLogger("kvrag.store")


class DiskTier:
    """The packet files under `root`, and the tier of those that are in the index.

    Attributes:
        allocate: gives the memory that packets are read into.
        encoded: whether packets are read as `read_packet` does it with that option.

    Raises:
        StoreError: `root` is not a folder or cannot be written.
    """

    name = "disk"

    def __init__(self, root: Path, index: Index, metrics: StoreMetrics, budget: DiskBudget):
        self.packets = root / "packets"
        self.quarantined = root / "quarantine"
        self.allocate: Allocator = BlockArena()
        self.encoded = False
        self.capacity = budget.capacity
        self._index = index
        self._metrics = metrics
        self._budget = budget
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.packets, self.quarantined):
                make_folder(folder)
                if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(f"no permission to read and write {folder}")
        except OSError as error:
            raise StoreError(
                f"expected a folder to keep packets in at {root}, found: {error}; choose another"
            ) from error

    def path(self, identity: str, key: PacketKey) -> Path:
        """Where the packet `key` of the identity with this digest belongs."""
        return self.packets / packet_path(identity, key)

    @property
    def nbytes(self) -> int:
        """Bytes of all packet files."""
        return sum(file.size for file in packet_files(self.packets))

    def has(self, key: PacketKey) -> bool:
        """Whether there are a row and a file."""
        row = self._index.row(key)
        return row is not None and self.path(row.identity, key).exists()

    def get(self, key: PacketKey) -> Packet | None:
        """The packet; a bad file is moved into quarantine, and a packet that is nowhere else loses its row."""
        row = self._index.row(key)
        if row is None:
            return None
        try:
            packet = self.read(row)
            self._metrics.bytes_read.labels(self.name).inc(row.bytes)
            return packet
        except (CorruptPacketError, OSError) as error:
            self.dismiss(row, error)
        return None

    def dismiss(self, row: PacketRow, error: CorruptPacketError | OSError) -> None:
        """Act on an error of reading: a bad file goes into quarantine, and a packet that is nowhere loses its row."""
        if isinstance(error, CorruptPacketError):
            self._metrics.corrupt.labels(self.name).inc()
            logger.warning("packet moved into quarantine: %s", error)
        elif not isinstance(error, FileNotFoundError):  # a disk that answers later is no reason to forget a packet
            logger.warning("packet cannot be read: %s", error)
            return
        elif not row.remote:
            logger.warning("packet is gone: %s", error)
        with suppress(StoreError, OSError):  # a store that cannot be changed must not fail a reader: a miss is enough
            self._give_up(row)

    def put(self, packet: Packet, texts: Sequence[Fingerprint]) -> bool:
        """Keep a packet and the texts that lead to it, durably; False when it was there and only gained texts.

        Raises:
            StoreError: the packet contradicts itself, or the disk is full or cannot be written; nothing was lost.
        """
        path = self.path(packet.scope.identity.digest, packet.key)
        if self.touch(path) and self._index.add_texts(packet.scope.digest, packet.key, texts):
            return False
        while True:
            with self.publish(packet) as row, self._index.exclusive():
                if path.exists():  # else somebody deleted it before the index was locked
                    self._index.add(row, texts)
                    break
        self.added(row)
        return True

    def receive(self, row: PacketRow, remote: str, parts: Iterable[memoryview]) -> Packet:
        """Keep the copy of a packet file that a remote sends, once every byte of it was checked.

        It is not synced to the disk: what a power failure damages is found by its checksums, and read again.

        Raises:
            CorruptPacketError: it is not the packet of this row.
            OSError: the disk is full or cannot be written.
        """
        path = self.path(row.identity, row.key)
        make_folder(path.parent)
        file, temporary = create_temporary(path.parent)
        with file:
            try:
                for part in parts:
                    _write_all(file, part)
                packet = read_packet(temporary, key=row.key, allocate=self.allocate, encoded=self.encoded)
                if packet.scope.digest != row.scope:
                    raise CorruptPacketError(f"packet {row.key} belongs to namespace {packet.scope.namespace!r}")
                found = PacketRow.of(read_header(temporary), temporary.stat().st_size, remote)
                with self._index.exclusive():
                    if self._index.row(row.key) is not None:  # else it was removed meanwhile
                        os.replace(temporary, path)
                        self._index.add(found, ())
            finally:
                temporary.unlink(missing_ok=True)
        self.added(found)
        return packet

    @contextmanager
    def publish(self, packet: Packet) -> Iterator[PacketRow]:
        """Write `packet` durably under its final name; the file stays locked for the block, which writes its row.

        Raises:
            StoreError: the disk is full or cannot be written; nothing is left behind.
        """
        path = self.path(packet.scope.identity.digest, packet.key)
        try:
            file, row = write_file(path, packet)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}; free or choose another disk, then build again") from error
        with file:
            yield row

    def touch(self, path: Path) -> bool:
        """Note that somebody relies on a packet file from now on; False when there is none."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:  # a folder that cannot be written
            return path.exists()
        return True

    def read(self, row: PacketRow) -> Packet:
        """The packet of a row, every byte checked; its file becomes the most recently used one.

        Raises:
            CorruptPacketError: the file is not what it claims to be.
            OSError: there is no such file, or it cannot be read.
        """
        path = self.path(row.identity, row.key)
        packet = read_packet(path, key=row.key, allocate=self.allocate, encoded=self.encoded)
        with suppress(OSError):  # it may have been evicted, or belong to somebody else
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return packet

    def check(self, path: Path, *, deep: bool) -> PacketRow:
        """The row that the file at `path` deserves.

        Raises:
            CorruptPacketError: the file is not what its name claims it to be.
            OSError: there is no such file, or it cannot be read.
        """
        row = PacketRow.of(read_header(path), path.stat().st_size)
        if path != self.path(row.identity, row.key):
            raise CorruptPacketError(f"{path}: it holds packet {row.key} of identity {row.identity[:16]}")
        if deep:
            read_packet(path, key=row.key, allocate=self.allocate)
        return row

    def quarantine(self, path: Path) -> None:
        """Move a bad file where nobody reads it; nothing happens when it is gone."""
        make_folder(self.quarantined)  # it may have been deleted
        with suppress(FileNotFoundError):  # another reader was first
            os.replace(path, self.quarantined / f"{path.stem}.{time.time_ns()}{SUFFIX}")

    def discard(self, key: PacketKey) -> None:
        """Delete a packet's file together with its row and texts."""
        with self._index.exclusive():
            row = self._index.row(key)
            self._index.remove(key)  # the texts of a packet that made room, too
            if row is not None:
                self.path(row.identity, key).unlink(missing_ok=True)

    def files(self) -> Iterator[Path]:
        """Every file under the packets folder, temporary and strange ones included."""
        for folder, _, names in os.walk(self.packets):
            yield from (Path(folder, name) for name in sorted(names))

    def added(self, row: PacketRow) -> None:
        """Count a file that was published, and make room for it."""
        self._metrics.bytes_written.labels(self.name).inc(row.bytes)
        self._budget.added(row)

    def _give_up(self, row: PacketRow) -> None:
        """Move a bad file aside, and forget a packet that is nowhere then, unless somebody has put it again."""
        path = self.path(row.identity, row.key)
        with self._index.exclusive():
            try:
                self.check(path, deep=True)
            except CorruptPacketError:
                self.quarantine(path)
            except FileNotFoundError:
                pass
            if not (row.remote or path.exists()):
                self._index.remove(row.key)


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) or 0 :]
