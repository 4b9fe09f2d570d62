"""Files that appear whole or not at all, under a lock that tells a writer at work from one that died.

A writer keeps a lock (`flock`) on its file from the first byte until the packet is in the index. A file that nobody has
locked and that is not in the index was therefore left by a writer that died.
"""

import fcntl
import os
import re
from io import FileIO
from pathlib import Path, PurePath
from uuid import uuid4

from kvrag.packet import Packet, PacketKey
from kvrag.store.format import write_packet
from kvrag.store.records import PacketRow

__all__ = [
    "SUFFIX",
    "TEMPORARY",
    "create_temporary",
    "is_abandoned",
    "key_of",
    "make_folder",
    "packet_path",
    "sweep",
    "write_file",
]

SUFFIX = ".safetensors"
TEMPORARY = ".tmp"


def packet_path(identity: str, key: PacketKey) -> str:
    """Where the packet `key` of the identity with this digest belongs, below `packets/`."""
    return f"{identity[:16]}/{key[:2]}/{key}{SUFFIX}"


def key_of(path: PurePath) -> PacketKey | None:
    """The key a file is named after, None when it is not named like a packet."""
    return PacketKey(path.stem) if path.suffix == SUFFIX and re.fullmatch("[0-9a-f]{64}", path.stem) else None


def create_temporary(folder: Path) -> tuple[FileIO, Path]:
    """A new, locked, writable file in `folder`, and where it is."""
    while True:
        path = folder / f".{uuid4().hex}{TEMPORARY}"
        file = FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file, path
        file.close()  # a sweep came between creating and locking: try again


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


def make_folder(path: Path) -> None:
    """Make a folder and those above it, durably, for their owner alone."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make what was created, renamed and deleted in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, packet: Packet) -> tuple[FileIO, PacketRow]:
    """The packet's file at `path`, durable and still locked, and its row.

    Raises:
        StoreError: the packet contradicts itself.
        OSError: the disk is full or cannot be written; nothing is left behind.
    """
    make_folder(path.parent)
    file, temporary = create_temporary(path.parent)
    try:
        header = write_packet(file.fileno(), packet)
        os.fsync(file.fileno())
        row = PacketRow.of(header, os.fstat(file.fileno()).st_size)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        file.close()
        raise
    return file, row
