"""Packet files on disk: published whole or not at all, never changed, moved aside when they are bad.

    root/packets/<identity[:16]>/<key[:2]>/<key>.safetensors
    root/quarantine/<key>.<nanoseconds>.safetensors

A writer keeps a lock (`flock`) on its file from the first byte until the packet is in the index. A file that nobody has
locked and that is not in the index was therefore left by a writer that died. From the rename until then it also shares
the lock of the folder: who takes a packet away has that lock alone, so that he never takes away one that was just put.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from uuid import uuid4

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.packet import Packet, PacketKey
from kvrag.store.format import read_header, read_packet, write_packet
from kvrag.store.records import PacketRow

__all__ = ["DiskTier"]

SUFFIX = ".safetensors"
TEMPORARY = ".tmp"


class DiskTier:
    """The packet files under `root`.

    Raises:
        StoreError: `root` is not a folder or cannot be written.
    """

    def __init__(self, root: Path):
        self.packets = root / "packets"
        self.quarantined = root / "quarantine"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.packets, self.quarantined):
                _make_folder(folder)
                if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(f"no permission to read and write {folder}")
        except OSError as error:
            raise StoreError(
                f"expected a folder to keep packets in at {root}, found: {error}; choose another"
            ) from error

    def path(self, identity: str, key: PacketKey) -> Path:
        """Where the packet `key` of the identity with this digest belongs."""
        return self.packets / identity[:16] / key[:2] / f"{key}{SUFFIX}"

    @contextmanager
    def publish(self, packet: Packet) -> Iterator[PacketRow]:
        """Write `packet` durably under its final name; the file stays locked for the block, which writes its row.

        Raises:
            StoreError: the disk is full or cannot be written; nothing is left behind.
        """
        path = self.path(packet.scope.identity.digest, packet.key)
        with ExitStack() as locks:
            try:
                row = _write(path, packet, locks)
            except OSError as error:
                raise StoreError(
                    f"cannot write {path}: {error}; free or choose another disk, then build again"
                ) from error
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

    @contextmanager
    def taking_away(self, path: Path) -> Iterator[None]:
        """Keeps everybody from putting packets into the folder of `path`; begin it before any transaction.

        Raises:
            OSError: the folder cannot be made or read.
        """
        _make_folder(path.parent)  # or nothing could keep others from making it
        with _locked(path.parent, fcntl.LOCK_EX):
            yield

    def read(self, row: PacketRow) -> Packet:
        """The packet of a row, every byte checked.

        Raises:
            CorruptPacketError: the file is not what it claims to be.
            OSError: there is no such file, or it cannot be read.
        """
        return read_packet(self.path(row.identity, row.key), key=row.key)

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
            read_packet(path, key=row.key)
        return row

    def quarantine(self, path: Path) -> None:
        """Move a bad file where nobody reads it; nothing happens when it is gone."""
        _make_folder(self.quarantined)  # it may have been deleted
        with suppress(FileNotFoundError):  # another reader was first
            os.replace(path, self.quarantined / f"{path.stem}.{time.time_ns()}{SUFFIX}")

    def remove(self, row: PacketRow) -> None:
        """Delete a packet's file while `taking_away`; its row must be gone already."""
        self.path(row.identity, row.key).unlink(missing_ok=True)

    def files(self) -> Iterator[Path]:
        """Every file under the packets folder, temporary and strange ones included."""
        for folder, _, names in os.walk(self.packets):
            yield from (Path(folder, name) for name in sorted(names))


def key_of(path: Path) -> PacketKey | None:
    """The key a file is named after, None when it is not named like a packet."""
    return PacketKey(path.stem) if path.suffix == SUFFIX and re.fullmatch("[0-9a-f]{64}", path.stem) else None


def is_abandoned(path: Path) -> bool:
    """Whether no writer is at work on a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def sweep(path: Path) -> bool:
    """Delete a temporary file unless its writer lives."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def _write(path: Path, packet: Packet, locks: ExitStack) -> PacketRow:
    """Write the file at `path`, durable and locked until `locks` end, and return its row."""
    _make_folder(path.parent)
    file, temporary = _create_temporary(path.parent)
    locks.enter_context(file)
    try:
        header = write_packet(file.fileno(), packet)
        os.fsync(file.fileno())
        row = PacketRow.of(header, os.fstat(file.fileno()).st_size)
        folder = locks.enter_context(_locked(path.parent, fcntl.LOCK_SH))
        os.replace(temporary, path)
        os.fsync(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return row


def _create_temporary(folder: Path) -> tuple[FileIO, Path]:
    while True:
        path = folder / f".{uuid4().hex}{TEMPORARY}"
        file = FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file, path
        file.close()  # a sweep came between creating and locking: try again


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, kind)
        yield fd
    finally:
        os.close(fd)


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
